"""The contrast ops as `torch.library` ops: the backend is chosen here."""

from __future__ import annotations

from types import ModuleType

import torch

from .. import dispatch
from ..library import register
from . import reference
from .reference import Contrast, Gradients, Values, accumulate_dtype

_CONTRAST = (
    "str critic, Tensor anchors, Tensor positives, Tensor rows, SymInt first, bool both, Tensor scale, Tensor bias, "
    "Tensor? anchor_label, Tensor? row_label, Tensor? anchor_index, Tensor? row_index"
)


def module_of(device: torch.device, backend: str) -> ModuleType:
    """The module whose `values` and `gradients` run."""
    dispatch.resolve("batch", device=device, backend=backend)
    return reference


def values(*args) -> Values:
    """`reference.values` of the fields of a `Contrast`, followed by the backend."""
    *fields, backend = args
    c = Contrast(*fields)
    return module_of(c.anchors.device, backend).values(c)


def gradients(*args) -> Gradients:
    """`reference.gradients` of the fields of a `Contrast`, followed by its other arguments and the backend."""
    *fields, weight, row_weight, value, slope, total, row_total, backend = args
    c = Contrast(*fields)
    known = Values(value, slope, total, row_total)
    return module_of(c.anchors.device, backend).gradients(c, weight, row_weight, known)


def _values_fake(*args) -> Values:
    c = Contrast(*args[:-1])
    value = c.anchors.new_empty(c.anchors.shape[0], dtype=accumulate_dtype(c.anchors, c.positives, c.rows))
    none = value.new_empty(0)
    softmax = c.critic == "infonce"
    return Values(
        value,
        torch.empty_like(value),
        torch.empty_like(value) if softmax else none,
        torch.empty_like(value) if softmax and c.both else none.clone(),
    )


def _gradients_fake(*args) -> Gradients:
    c = Contrast(*args[:12])
    wide = c.anchors.new_empty(c.anchors.shape, dtype=accumulate_dtype(c.anchors, c.positives, c.rows))
    return Gradients(wide, torch.empty_like(wide), wide.new_empty(()), wide.new_empty(()))


values_op = register(
    f"contrast_values({_CONTRAST}, str backend) -> (Tensor value, Tensor slope, Tensor total, Tensor row_total)",
    values,
    _values_fake,
)
gradients_op = register(
    f"contrast_gradients({_CONTRAST}, Tensor weight, Tensor? row_weight, Tensor value, Tensor slope, Tensor total, "
    "Tensor row_total, str backend) -> (Tensor anchors, Tensor positives, Tensor scale, Tensor bias)",
    gradients,
    _gradients_fake,
)
