"""Gradients that may not be differentiated again."""

from __future__ import annotations

import torch
from torch import Tensor

from .first_order import INSTEAD


def graph_handle(source: Tensor | None) -> Tensor | None:
    """An empty tensor that depends on `source` in the graph and holds none of its memory; None where nothing does.

    A Function takes it as an input and saves it, so that its backward can tie gradients to the input they belong to.
    (Compiled code refuses double backward by itself and needs none.)
    """
    if source is None or not source.requires_grad or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    return source[None][:0].clone()  # of a scalar too


def differentiable_once(grads: list[Tensor | None], why: str, *sources: Tensor | None) -> list[Tensor | None]:
    """The `grads` of a backward, tied under create_graph=True to `sources` by a node that raises when it is reached.

    Args:
        grads: what backward returns.
        why: the message of the NotImplementedError, to which what to do instead is added.
        sources: grad_output and the `graph_handle` of every input that the gradients depend on. Without the inputs, a
            second differentiation with respect to named tensors would not meet the node, and lose its term in silence.
    """
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
        if not any(s is not None and s.requires_grad for s in sources):
            sources = (torch.empty(0, requires_grad=True),)  # the node itself, where there is no path to tie it to
        return list(_Refuse.apply(why, grads, *sources))
    return grads


class _Refuse(torch.autograd.Function):
    """The values of `grads`, as a function of `sources` whose derivative raises."""

    @staticmethod
    def forward(ctx, why, grads, *sources):
        ctx.why = why
        return tuple(None if g is None else g.detach() for g in grads)

    @staticmethod
    def backward(ctx, *_):
        raise NotImplementedError(f"{ctx.why}; {INSTEAD}")
