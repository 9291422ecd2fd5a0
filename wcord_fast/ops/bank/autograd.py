"""Autograd of the bank ops: value and anchor gradient are known after one pass, and attached; backward multiplies.

Only the gradient [S, B, D] is saved (and an empty tensor, see `graph_handle`): never the bank, the draws or the seed,
so a bank that is updated between forward and backward, or a sampler that has moved on, cannot change a gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..differentiable_once import differentiable_once, graph_handle
from ..eager import calls_directly
from ..sampling.spec import DrawSpec
from . import op

_NOT_TWICE = "the gradient of a bank score cannot be differentiated again: only the first one is computed"


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
        # Multiplied before it is rounded to a narrow dtype, so that loss scaling does its work.
        grads: list[Tensor | None] = [(grad_output[..., None] * grad).to(ctx.dtype)]
        return differentiable_once(grads, _NOT_TWICE, grad_output, handle)[0], None, None, None


def nce(anchors: Tensor, banks, index, log_z, spec: DrawSpec, temperature, plan, backend) -> Tensor:
    """NCE losses [S, B] of anchors [S, B, D]."""
    # Detached, not under no_grad: an error in compiled code would leave gradients switched off for good.
    needs_grad = wants_grad(anchors)
    run: Any = op.nce if calls_directly(anchors, log_z, *banks) else op.nce_op
    found = run(anchors.detach(), banks, index, log_z, *spec_args(spec), temperature, needs_grad, plan, backend)
    return attach(anchors, *found)


def mean_score(anchors: Tensor, banks, index, spec: DrawSpec, plan, backend) -> Tensor:
    """Mean scores of the negatives [S, B] of anchors [S, B, D]."""
    needs_grad = wants_grad(anchors)
    run: Any = op.mean_score if calls_directly(anchors, *banks) else op.mean_score_op
    found = run(anchors.detach(), banks, index, *spec_args(spec), needs_grad, plan, backend)
    return attach(anchors, *found)


def attach(anchors: Tensor, value: Tensor, grad: Tensor) -> Tensor:
    """`value` [S, B] as a function of `anchors` [S, B, D] with derivative `grad`; as it is where none is wanted."""
    return Attached.apply(anchors, graph_handle(anchors), value, grad) if wants_grad(anchors) else value


def wants_grad(anchors: Tensor) -> bool:
    """Whether the forward op should compute the anchor gradient at all."""
    return torch.is_grad_enabled() and anchors.requires_grad


def spec_args(spec: DrawSpec) -> tuple:
    """`spec` in the order of the schemas."""
    return (spec.tables, spec.source, spec.k, spec.replacement, spec.expected, spec.anchor_offset)
