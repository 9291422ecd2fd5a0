"""Autograd of the contrast ops: forward keeps one or two numbers per anchor, backward makes the scores again.

The gradient of a row depends on the weights of all losses that have it for a negative, so it cannot be made before
they are known. Saved are the inputs and what `reference.Values` holds; no score.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..differentiable_once import differentiable_once
from ..eager import calls_directly
from . import op
from .reference import Contrast, Gradients, Values, replaced

NOT_TWICE = "the gradient of a contrast cannot be differentiated again: only the first one is computed"


def losses(c: Contrast, backend: str) -> Tensor:
    """Losses [A], differentiable with respect to anchors, positives, scale and bias; of the rows' only with `both`."""
    if c.positives is c.anchors:  # the same tensor twice cannot be traced through one autograd.Function
        c = c._replace(positives=c.positives.view_as(c.positives))
    return _Losses.apply(c.anchors, c.positives, c.scale, c.bias, c, backend)


class _Losses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, anchors, positives, scale, bias, c: Contrast, backend: str):
        c = detached(c)
        known = values(c, backend)
        ctx.save_for_backward(anchors, positives, scale, bias, positives if c.both else c.rows, *known)
        ctx.options, ctx.ids, ctx.backend = (c.critic, c.first, c.both), c[8:], backend
        return known.value

    @staticmethod
    def backward(ctx, weight):
        inputs, rows, known = ctx.saved_tensors[:4], ctx.saved_tensors[4], Values(*ctx.saved_tensors[5:])
        anchors, positives, scale, bias = inputs
        critic, first, both = ctx.options
        c = detached(Contrast(critic, anchors, positives, rows, first, both, scale, bias, *ctx.ids))
        found = gradients(c, weight, weight if c.both else None, known, ctx.backend)
        return *as_inputs(found, inputs, ctx.needs_input_grad, weight), None, None


def as_inputs(
    found: tuple[Tensor, ...], inputs: tuple[Tensor, ...], needs: tuple, weight: Tensor
) -> list[Tensor | None]:
    """The gradients of a backward in the dtypes of the inputs, differentiable once."""
    grads: list[Tensor | None] = [
        g.to(t.dtype) if needed else None for g, t, needed in zip(found, inputs, needs, strict=False)
    ]
    return differentiable_once(grads, NOT_TWICE, weight, *inputs)


def detached(c: Contrast) -> Contrast:
    """`c` outside of the graph."""
    return replaced(c, *(t.detach() for t in (c.anchors, c.positives, c.rows, c.scale, c.bias)))


def values(c: Contrast, backend: str) -> Values:
    """`reference.values` by the backend that is chosen."""
    run: Any = op.values if calls_directly(c.anchors, c.positives, c.rows) else op.values_op
    return Values(*run(*c, backend))


def gradients(c: Contrast, weight: Tensor, row_weight: Tensor | None, known: Values, backend: str) -> Gradients:
    """`reference.gradients` by the backend that is chosen."""
    run: Any = op.gradients if calls_directly(c.anchors, c.positives, c.rows, weight) else op.gradients_op
    return Gradients(*run(*c, weight.detach(), row_weight, *known, backend))
