"""Autograd of the bank ops: one pass makes values and gradients; backward multiplies.

Only the gradients are saved, and an empty tensor for each input (see `graph_handle`). The bank, the draws and the seed
are not. So a bank that is updated between forward and backward, or a sampler that has advanced, cannot change a
gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..differentiable_once import differentiable_once, graph_handle
from ..eager import calls_directly
from ..sampling.spec import DrawSpec
from . import critics, op

_NOT_TWICE = "the gradient of a bank score cannot be differentiated again: only the first one is computed"


class Attached(torch.autograd.Function):
    """Values [S, B] whose derivatives are known already.

    An input and its gradient are [S, B, D]; or the input is a scalar and its gradient [S, B].
    """

    @staticmethod
    def forward(ctx, value, count, *rest):
        inputs, handles, grads = rest[:count], rest[count : 2 * count], rest[2 * count :]
        ctx.save_for_backward(*handles, *grads)
        ctx.dtypes = tuple(x.dtype for x in inputs)
        ctx.mark_dirty(value)  # returned as it is: a view could not be changed in place later, and a copy takes time
        return value

    @staticmethod
    def backward(ctx, grad_output):
        count = len(ctx.dtypes)
        saved = ctx.saved_tensors  # read once: activation checkpointing allows no more
        handles, known = saved[:count], saved[count:]
        grads: list[Tensor | None] = []
        for dtype, grad in zip(ctx.dtypes, known, strict=True):
            # The product comes before the rounding to a narrow dtype, so that loss scaling has its effect.
            whole = grad_output[..., None] * grad if grad.dim() == 3 else (grad_output * grad).sum()
            grads.append(whole.to(dtype))
        grads = differentiable_once(grads, _NOT_TWICE, grad_output, *handles)
        return None, None, *grads, *[None] * (2 * count)


def nce(anchors: Tensor, banks, index, log_z, spec: DrawSpec, temperature, plan, backend) -> Tensor:
    """NCE losses [S, B] of anchors [S, B, D]."""
    # Detached, not under no_grad: an error in compiled code would leave gradients switched off for good.
    needs_grad = wants_grad(anchors)
    run: Any = op.nce if calls_directly(anchors, log_z, *banks) else op.nce_op
    value, grad = run(anchors.detach(), banks, index, log_z, *spec_args(spec), temperature, needs_grad, plan, backend)
    return attach(value, (anchors, grad))


def mean_score(anchors: Tensor, banks, index, spec: DrawSpec, plan, backend) -> Tensor:
    """Mean scores of the negatives [S, B] of anchors [S, B, D]."""
    needs_grad = wants_grad(anchors)
    run: Any = op.mean_score if calls_directly(anchors, *banks) else op.mean_score_op
    value, grad = run(anchors.detach(), banks, index, *spec_args(spec), needs_grad, plan, backend)
    return attach(value, (anchors, grad))


def infonce(anchors: Tensor, banks, index, positive: Tensor | None, spec: DrawSpec, temperature, plan, backend):
    """InfoNCE losses [S, B] of anchors [S, B, D], their positives [S, B, D] or None for the banks' rows `index`."""
    needs_grad = wants_grad(anchors, positive)
    run: Any = critics.infonce if calls_directly(*_given(anchors, positive, *banks)) else critics.infonce_op
    args = (anchors.detach(), banks, index, detached(positive), *spec_args(spec), temperature)
    value, *grads = run(*args, needs_grad, plan, backend)
    return attach(value, *zip((anchors, positive), grads, strict=True))


def sigmoid(anchors: Tensor, banks, index, positive: Tensor | None, scale, bias, spec: DrawSpec, plan, backend):
    """Sigmoid losses [S, B], as `infonce`; `scale` and `bias` are scalar tensors."""
    needs_grad = wants_grad(anchors, positive, scale, bias)
    run: Any = (
        critics.sigmoid if calls_directly(*_given(anchors, positive, scale, bias, *banks)) else critics.sigmoid_op
    )
    args = (anchors.detach(), banks, index, detached(positive), scale.detach(), bias.detach(), *spec_args(spec))
    value, *grads = run(*args, needs_grad, plan, backend)
    return attach(value, *zip((anchors, positive, scale, bias), grads, strict=True))


def attach(value: Tensor, *known: tuple[Tensor | None, Tensor]) -> Tensor:
    """`value` [S, B] as a function of inputs whose gradients are `known`: pairs (input, gradient), see `Attached`."""
    pairs = [(x, grad) for x, grad in known if wants_grad(x)]
    if not pairs:
        return value
    inputs, grads = zip(*pairs, strict=True)
    return Attached.apply(value, len(inputs), *inputs, *map(graph_handle, inputs), *grads)


def wants_grad(*inputs: Tensor | None) -> bool:
    """Whether the forward op should compute gradients."""
    if torch.is_grad_enabled():
        for x in inputs:
            if x is not None and x.requires_grad:
                return True
    return False


def detached(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach()


def _given(*tensors: Tensor | None) -> list[Tensor]:
    return [t for t in tensors if t is not None]


def spec_args(spec: DrawSpec) -> tuple:
    """`spec` in the order of the schemas."""
    return (spec.tables, spec.source, spec.k, spec.replacement, spec.expected, spec.anchor_offset)
