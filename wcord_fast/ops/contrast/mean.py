"""The mean loss of anchors against rows that may be written before backward: forward makes the gradients, too.

A queue takes the batch right after it was scored, so that backward could not make the scores again. With one weight for
all anchors, known in advance, nothing has to be made again: forward saves gradients of the inputs' sizes, and no row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .autograd import Runner, as_inputs, wants_grad
from .reference import Contrast


def mean_loss(c: Contrast, backend: str) -> Tensor:
    """The mean of the losses [A], a scalar, differentiable with respect to anchors, positives, scale and bias."""
    runner = Runner(c, backend)
    if not wants_grad(c):
        return runner.values(c).value.mean()
    return attach(c, runner)


def attach(c: Contrast, runner) -> Tensor:
    """`runner.mean(c)`, (the mean and its gradients), as a function of anchors, positives, scale and bias."""
    return _Mean.apply(c.anchors, c.positives, c.scale, c.bias, c, runner)


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx, anchors, positives, scale, bias, c: Contrast, runner):
        mean, *result = runner.mean(c)
        scalars = [t if isinstance(t, Tensor) else None for t in (scale, bias)]
        ctx.save_for_backward(anchors, positives, *scalars, *result)
        return mean

    @staticmethod
    def backward(ctx, weight):
        inputs, result = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        scaled = tuple(grad * weight.to(grad.dtype) for grad in result)
        return *as_inputs(scaled, inputs, ctx.needs_input_grad, weight), None, None
