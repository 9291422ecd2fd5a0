"""Autograd of the contrast ops: forward keeps one or two numbers per anchor, backward makes the scores again.

The gradient of a row depends on the weights of all losses that have it for a negative, so it cannot be made before
they are known. Saved are the inputs and `reference.Totals`; no score.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from ..differentiable_once import differentiable_once
from ..eager import calls_directly
from . import op
from .reference import Contrast, Gradients, Totals, Values

_NOT_TWICE = "the gradient of a contrast cannot be differentiated again: only the first one is computed"


class Runner:
    """How a contrast is computed: by a backend's module at once, or, where operators are traced, by the ops."""

    def __init__(self, c: Contrast, backend: str):
        direct = calls_directly(c.anchors, c.positives, c.rows)
        self._module: ModuleType | None = op.module_of(c, backend) if direct else None
        self._backend = backend

    def values(self, c: Contrast) -> Values:
        """`reference.values` of the backend."""
        if self._module:
            return self._module.values(c)
        return Values(*op.values_op(*_op_args(c), self._backend))

    def mean(self, c: Contrast) -> tuple[Tensor, ...]:
        """The mean of the losses, and its gradients in anchors, positives, scale and bias."""
        if self._module:
            return op.mean(*c, self._backend)
        return op.mean_op(*_op_args(c), self._backend)

    def gradients(
        self,
        c: Contrast,
        weight: Tensor,
        row_weight: Tensor | None,
        known: Totals,
        needs: tuple[bool, ...] = (True, True, True, True),
    ) -> Gradients:
        """`reference.gradients` of the backend; `needs`: of anchors, positives, scale and bias."""
        sides = (needs[0] or needs[2], needs[1])
        if self._module and calls_directly(weight):
            with torch.no_grad():  # under create_graph=True, too
                return self._module.gradients(c, weight, row_weight, known, *sides)
        weight = weight.detach()
        row_weight = weight if c.both else row_weight
        return Gradients(*op.gradients_op(*_op_args(c), weight, row_weight, *known, *sides, self._backend))


def losses(c: Contrast, backend: str) -> Tensor:
    """Losses [A], differentiable with respect to anchors, positives, scale and bias; of the rows' only with `both`."""
    runner = Runner(c, backend)
    if not wants_grad(c):
        return runner.values(c).value
    positives = c.positives.view_as(c.positives) if c.positives is c.anchors else c.positives  # for the tracer
    return _Losses.apply(c.anchors, positives, c.scale, c.bias, c, runner)


def wants_grad(c: Contrast) -> bool:
    """Whether there is anything to differentiate with respect to."""
    inputs = (c.anchors, c.positives, c.scale, c.bias)
    return torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in inputs)


class _Losses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, anchors, positives, scale, bias, c: Contrast, runner: Runner):
        result = runner.values(c)
        scalars = [t if isinstance(t, Tensor) else None for t in (scale, bias)]
        ctx.save_for_backward(anchors, positives, *scalars, None if c.both else c.rows, *kept(c[8:]), *result.totals)
        fixed = [None if isinstance(t, Tensor) else t for t in (scale, bias)]
        ctx.options, ctx.runner = (c.critic, c.first, c.both, *fixed), runner
        return result.value

    @staticmethod
    def backward(ctx, weight):
        anchors, positives, scale, bias, rows, *rest = ctx.saved_tensors
        ids, known = rest[:4], rest[4:]
        critic, first, both, fixed_scale, fixed_bias = ctx.options
        scalars = (fixed_scale if scale is None else scale, fixed_bias if bias is None else bias)
        c = Contrast(critic, anchors, positives, positives if both else rows, first, both, *scalars, *ids)
        result = ctx.runner.gradients(c, weight, weight if both else None, Totals(*known), ctx.needs_input_grad)
        return *as_inputs(result, (anchors, positives, scale, bias), ctx.needs_input_grad, weight), None, None


def kept(ids: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Labels and indices as `save_for_backward` takes them: it refuses those made in inference mode."""
    if torch.compiler.is_compiling():
        return list(ids)
    return [t.clone() if t is not None and t.is_inference() else t for t in ids]


def as_inputs(gradients: tuple[Tensor | None, ...], inputs: tuple, needs: tuple, weight: Tensor) -> list[Tensor | None]:
    """The gradients of a backward in the dtypes of the inputs, differentiable once."""
    grads = [g.to(t.dtype) if g is not None and n else None for g, t, n in zip(gradients, inputs, needs, strict=False)]
    return differentiable_once(grads, _NOT_TWICE, weight, *inputs)


def _op_args(c: Contrast) -> Contrast:
    """`c` outside of the graph, its numbers as tensors."""
    tensors = [
        t.detach() if isinstance(t, Tensor) else torch.full((), t, dtype=torch.float64, device=c.anchors.device)
        for t in (c.anchors, c.positives, c.rows, c.scale, c.bias)
    ]
    return c._replace(anchors=tensors[0], positives=tensors[1], rows=tensors[2], scale=tensors[3], bias=tensors[4])
