"""Autograd of the bank ops: forward computes value and anchor gradient in one pass, backward scales the latter.

Only the gradient [S, B, D] is saved (and an empty tensor, see `graph_handle`): never the bank, the draws or the seed,
so a bank that is updated between forward and backward, or a sampler that has moved on, cannot change a gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..differentiable_once import differentiable_once, graph_handle
from ..sampling.spec import DrawSpec
from .op import mean_score_op, nce_op

_NOT_TWICE = "the gradient of a bank score cannot be differentiated again: only the first one is computed"


class BankNCE(torch.autograd.Function):
    """NCE loss per anchor [S, B] of anchors [S, B, D]."""

    @staticmethod
    def forward(ctx, anchors, handle, banks, index, log_z, spec_args, temperature, needs_grad, plan, backend):
        loss, grad = nce_op(anchors, banks, index, log_z, *spec_args, temperature, needs_grad, plan, backend)
        ctx.save_for_backward(grad, handle)
        ctx.dtype = anchors.dtype
        return loss

    @staticmethod
    def backward(ctx, grad_output):
        grad, handle = ctx.saved_tensors
        return _scaled(grad, handle, grad_output, ctx.dtype), *(None,) * 9


class BankMeanScore(torch.autograd.Function):
    """Mean score of the negatives per anchor [S, B] of anchors [S, B, D]."""

    @staticmethod
    def forward(ctx, anchors, handle, banks, index, spec_args, needs_grad, plan, backend):
        mean, grad = mean_score_op(anchors, banks, index, *spec_args, needs_grad, plan, backend)
        ctx.save_for_backward(grad, handle)
        ctx.dtype = anchors.dtype
        return mean

    @staticmethod
    def backward(ctx, grad_output):
        grad, handle = ctx.saved_tensors
        return _scaled(grad, handle, grad_output, ctx.dtype), *(None,) * 7


class Attached(torch.autograd.Function):
    """Values [S, B] and their gradients [S, B, D] with respect to anchors [S, B, D], both known already."""

    @staticmethod
    def forward(ctx, anchors, handle, value, grad):
        ctx.save_for_backward(grad, handle)
        ctx.dtype = anchors.dtype
        return value.view_as(value)

    @staticmethod
    def backward(ctx, grad_output):
        grad, handle = ctx.saved_tensors
        return _scaled(grad, handle, grad_output, ctx.dtype), None, None, None


def _scaled(grad: Tensor, handle: Tensor | None, grad_output: Tensor, dtype: torch.dtype) -> Tensor | None:
    # Multiplied before it is rounded to a narrow dtype, so that loss scaling does its work.
    grads: list[Tensor | None] = [(grad_output[..., None] * grad).to(dtype)]
    return differentiable_once(grads, _NOT_TWICE, grad_output, handle)[0]


def nce(anchors: Tensor, *args) -> Tensor:
    """`BankNCE` of anchors [S, B, D]; the other arguments are those of its forward after `handle`."""
    return BankNCE.apply(anchors, graph_handle(anchors), *args)


def mean_score(anchors: Tensor, *args) -> Tensor:
    """`BankMeanScore` of anchors [S, B, D]; the other arguments are those of its forward after `handle`."""
    return BankMeanScore.apply(anchors, graph_handle(anchors), *args)


def attach(anchors: Tensor, value: Tensor, grad: Tensor) -> Tensor:
    """`value` [S, B] as a function of `anchors` [S, B, D] with derivative `grad`; as it is where none is wanted."""
    return Attached.apply(anchors, graph_handle(anchors), value, grad) if wants_grad(anchors) else value


def wants_grad(anchors: Tensor) -> bool:
    """Whether the forward op should compute the anchor gradient at all."""
    return torch.is_grad_enabled() and anchors.requires_grad


def spec_args(spec: DrawSpec) -> tuple:
    """`spec` in the order of the schemas."""
    return (spec.tables, spec.source, spec.k, spec.replacement, spec.expected, spec.anchor_offset)
