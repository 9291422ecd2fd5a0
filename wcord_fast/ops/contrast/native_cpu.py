"""The contrast ops in compiled code for CPU tensors (csrc/cpu/contrast_*): signatures and results of `reference`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import native_module
from ..tensors import accumulation_dtype, contiguous
from .reference import Contrast, Gradients, Totals, Values, check_values, unwritten

_IDS = Contrast._fields[8:]


def values(c: Contrast) -> Values:
    """As `reference.values`."""
    fields, anchors, _kept = _fields(c)
    softmax, count = c.critic == "infonce", c.anchors.shape[0]
    value, slope = anchors.new_empty(count), anchors.new_empty(count)
    total, row_total = anchors.new_empty(count * softmax), anchors.new_empty(c.rows.shape[0] * (softmax and c.both))
    native = native_module.module()
    record = native.ContrastValues(
        **fields,
        value=value.data_ptr(),
        slope=slope.data_ptr(),
        total=total.data_ptr(),
        row_total=row_total.data_ptr(),
        threads=native_module.threads(),
    )
    if not native.cpu_contrast_values(record):
        check_values(c)
        raise ValueError(f"x, y: expected rows whose products are finite in {anchors.dtype}")
    return Values(value, slope, total, row_total)


def gradients(
    c: Contrast, weight: Tensor, row_weight: Tensor | None, known: Totals, need_anchors: bool, need_positives: bool
) -> Gradients:
    """As `reference.gradients`."""
    fields, anchors, _kept = _fields(c)
    weight = contiguous(weight, anchors.dtype)
    row_weight = None if row_weight is None else contiguous(row_weight, anchors.dtype)
    slope, total, row_total = (contiguous(t, anchors.dtype) for t in known)
    grads = unwritten(anchors, need_anchors, need_positives)
    native = native_module.module()
    record = native.ContrastGradients(
        **fields,
        weight=weight.data_ptr(),
        row_weight=0 if row_weight is None else row_weight.data_ptr(),
        slope=slope.data_ptr(),
        total=total.data_ptr(),
        row_total=row_total.data_ptr(),
        anchor_grad=grads.anchors.data_ptr(),  # 0 where it is not wanted: it is empty
        positive_grad=grads.positives.data_ptr(),
        scale_grad=grads.scale.data_ptr(),
        bias_grad=grads.bias.data_ptr(),
        threads=native_module.threads(),
    )
    native.cpu_contrast_gradients(record)
    return grads


def _fields(c: Contrast) -> tuple[dict[str, Any], Tensor, tuple[Tensor | None, ...]]:
    """(the record `ContrastRows`, the anchors in the dtype of the call, the tensors to keep until it has been used)."""
    dtype = accumulation_dtype(c.anchors, c.positives, c.rows)
    anchors, rows = contiguous(c.anchors, dtype), contiguous(c.rows, dtype)
    positives = rows if c.both else contiguous(c.positives, dtype)
    ids = [None if t is None else contiguous(t, torch.int64) for t in c[8:]]
    fields = {
        "critic": native_module.module().CONTRAST_CRITICS[c.critic],
        "wide": dtype is torch.float64,
        "both": c.both,
        "num_anchors": anchors.shape[0],
        "num_rows": rows.shape[0],
        "dim": anchors.shape[1],
        "first": c.first,
        "anchors": anchors.data_ptr(),
        "positives": positives.data_ptr(),
        "rows": rows.data_ptr(),
        "scale": float(c.scale),
        "bias": float(c.bias),
    }
    for name, t in zip(_IDS, ids, strict=True):
        if t is not None:
            fields[name] = t.data_ptr()
    return fields, anchors, (anchors, positives, rows, *ids)
