"""The contrast ops as `torch.library` ops: the backend is chosen here."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from .. import dispatch
from ..library import register
from ..tensors import accumulation_dtype
from . import native_cpu, reference, triton
from .reference import Contrast, Gradients, Totals, Values

_MODULES: dict[str, ModuleType] = {"native": native_cpu, "triton": triton, "reference": reference}
_CONTRAST = (
    "str critic, Tensor anchors, Tensor positives, Tensor rows, SymInt first, bool both, Tensor scale, Tensor bias, "
    "Tensor? anchor_label, Tensor? row_label, Tensor? anchor_index, Tensor? row_index"
)


def choose(device: str, dtypes: tuple[torch.dtype, ...], num_rows: int, backend: str) -> dispatch.Choice:
    """The backend for tensors with these dtypes and at most `num_rows` rows."""
    if device == "cpu":
        return dispatch.resolve("batch", device=device, backend=backend)

    def unfit(candidate: str) -> str | None:
        return triton.unavailable_reason(dtypes, num_rows) if candidate == "triton" else None

    return dispatch.resolve("batch", device=device, backend=backend, unfit=unfit)


def module_of(c: Contrast, backend: str) -> ModuleType:
    """The module whose `values` and `gradients` run."""
    dtypes = (c.anchors.dtype, c.positives.dtype, c.rows.dtype)
    return _MODULES[choose(c.anchors.device.type, dtypes, max(len(c.anchors), len(c.rows)), backend).backend]


def values(*args) -> Values:
    """`reference.values` of the fields of a `Contrast`, followed by the backend."""
    *fields, backend = args
    c = Contrast(*fields)
    return module_of(c, backend).values(c)


def gradients(*args) -> Gradients:
    """`reference.gradients` of the fields of a `Contrast`, followed by its other arguments and the backend."""
    c, (weight, row_weight, *known), (*needs, backend) = Contrast(*args[:12]), args[12:17], args[17:]
    return module_of(c, backend).gradients(c, weight, row_weight, Totals(*known), *needs)


def mean(*args) -> tuple[Tensor, *tuple[Tensor, ...]]:
    """The mean of the losses of the fields of a `Contrast`, followed by the backend, and its gradients.

    One op: a compiler that moved the gradients to backward would read rows that have been written by then.
    """
    c = Contrast(*args[:-1])
    module = module_of(c, args[-1])
    losses = module.values(c)
    weight = torch.full_like(losses.value, 1 / len(c.anchors))
    return losses.value.mean(), *module.gradients(c, weight, None, losses.totals, True, True)


def _mean_fake(*args) -> tuple[Tensor, *tuple[Tensor, ...]]:
    c = Contrast(*args[:-1])
    wide = c.anchors.new_empty(c.anchors.shape, dtype=accumulation_dtype(c.anchors, c.positives, c.rows))
    return wide.new_empty(()), *reference.unwritten(wide, True, True)


def _values_fake(*args) -> Values:
    c = Contrast(*args[:-1])
    value = c.anchors.new_empty(c.anchors.shape[0], dtype=accumulation_dtype(c.anchors, c.positives, c.rows))
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
    wide = c.anchors.new_empty(c.anchors.shape, dtype=accumulation_dtype(c.anchors, c.positives, c.rows))
    return reference.unwritten(wide, *args[17:19])


values_op = register(
    f"contrast_values({_CONTRAST}, str backend) -> (Tensor value, Tensor slope, Tensor total, Tensor row_total)",
    values,
    _values_fake,
)
mean_op = register(
    f"contrast_mean({_CONTRAST}, str backend) -> "
    "(Tensor mean, Tensor anchors, Tensor positives, Tensor scale, Tensor bias)",
    mean,
    _mean_fake,
)
gradients_op = register(
    f"contrast_gradients({_CONTRAST}, Tensor weight, Tensor? row_weight, Tensor slope, Tensor total, Tensor row_total, "
    "bool need_anchors, bool need_positives, str backend) -> "
    "(Tensor anchors, Tensor positives, Tensor scale, Tensor bias)",
    gradients,
    _gradients_fake,
)
