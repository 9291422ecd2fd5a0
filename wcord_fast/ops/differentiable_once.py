"""Gradients that may not be differentiated again."""

from __future__ import annotations

import torch
from torch import Tensor


def differentiable_once(grads: list[Tensor | None], why: str) -> list[Tensor | None]:
    """The `grads` of a backward, with a node attached under create_graph=True that raises when it is differentiated.

    `once_differentiable` raises only when grad_output itself requires grad: a gradient penalty would pass it and
    silently lose its term. (Compiled code refuses double backward by itself.)
    """
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
        return list(_Refuse.apply(why, *(g if g is None else g.detach().requires_grad_() for g in grads)))
    return grads


class _Refuse(torch.autograd.Function):
    """Identity whose backward raises."""

    @staticmethod
    def forward(ctx, why, *grads):
        ctx.why = why
        return tuple(None if g is None else g.view_as(g) for g in grads)

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(ctx.why)
