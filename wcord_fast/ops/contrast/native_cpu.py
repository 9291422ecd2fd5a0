"""The contrast ops in compiled code for CPU tensors (csrc/cpu/contrast_*): signatures and results of `reference`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import native_module
from .reference import Contrast, Gradients, Values, accumulate_dtype, check_values


def values(c: Contrast) -> Values:
    """As `reference.values`."""
    fields, wide = _fields(c)
    softmax = c.critic == "infonce"
    value, slope = (wide.anchors.new_empty(len(c.anchors)) for _ in range(2))
    total = torch.empty_like(value) if softmax else value.new_empty(0)
    row_total = value.new_empty(len(c.rows) if softmax and c.both else 0)
    native = native_module.module()
    record = native.ContrastValues(
        **fields,
        value=value.data_ptr(),
        slope=slope.data_ptr(),
        total=total.data_ptr(),
        row_total=row_total.data_ptr(),
        **native_module.on_cpu(),
    )
    if not native.cpu_contrast_values(record):
        check_values(c)
        raise ValueError(f"scores: expected rows whose products are finite in {wide.anchors.dtype}")
    return Values(value, slope, total, row_total)


def gradients(c: Contrast, weight: Tensor, row_weight: Tensor | None, known: Values) -> Gradients:
    """As `reference.gradients`."""
    fields, wide = _fields(c)
    dtype = wide.anchors.dtype
    weight = weight.to(dtype).contiguous()
    row_weight = None if row_weight is None else row_weight.to(dtype).contiguous()
    slope, total, row_total = (t.contiguous() for t in known[1:])
    grads = Gradients(
        torch.empty_like(wide.anchors), torch.empty_like(wide.anchors), weight.new_empty(()), weight.new_empty(())
    )
    native = native_module.module()
    record = native.ContrastGradients(
        **fields,
        weight=weight.data_ptr(),
        row_weight=0 if row_weight is None else row_weight.data_ptr(),
        slope=slope.data_ptr(),
        total=total.data_ptr(),
        row_total=row_total.data_ptr(),
        anchor_grad=grads.anchors.data_ptr(),
        positive_grad=grads.positives.data_ptr(),
        scale_grad=grads.scale.data_ptr(),
        bias_grad=grads.bias.data_ptr(),
        **native_module.on_cpu(),
    )
    native.cpu_contrast_gradients(record)
    return grads


def _fields(c: Contrast) -> tuple[dict[str, Any], Contrast]:
    """The record `ContrastRows`, and the tensors to keep until it has been used."""
    dtype = accumulate_dtype(c.anchors, c.positives, c.rows)
    anchors, rows = c.anchors.to(dtype).contiguous(), c.rows.to(dtype).contiguous()
    positives = rows if c.both else c.positives.to(dtype).contiguous()
    names = ("anchor_label", "row_label", "anchor_index", "row_index")
    ids = [None if t is None else t.long().contiguous() for t in c[8:]]
    fields = {
        "critic": native_module.module().CONTRAST_CRITICS[c.critic],
        "wide": dtype == torch.float64,
        "both": c.both,
        "num_anchors": len(anchors),
        "num_rows": len(rows),
        "dim": anchors.shape[1],
        "first": c.first,
        "anchors": anchors.data_ptr(),
        "positives": positives.data_ptr(),
        "rows": rows.data_ptr(),
        "scale": float(c.scale),
        "bias": float(c.bias),
        **{name: 0 if t is None else t.data_ptr() for name, t in zip(names, ids, strict=True)},
    }
    return fields, Contrast(c.critic, anchors, positives, rows, c.first, c.both, c.scale, c.bias, *ids)
