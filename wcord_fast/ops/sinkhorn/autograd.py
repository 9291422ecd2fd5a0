"""The registered optimal-transport ops and their `autograd.Function`.

`wcord_fast::ot_solve` computes the value and the gradients that are needed. The Function keeps these gradients and an
empty tensor. The op itself resolves the backend, at run time also under `torch.compile`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import dispatch
from ..differentiable_once import differentiable_once
from ..eager import calls_directly, eager
from ..library import register
from ..tensors import accumulation_dtype
from . import backends, unreached
from .pairs import Pairs
from .reference import SolveOptions, SolveResult, unwritten

_NOT_TWICE = "the gradient of an optimal-transport cost cannot be differentiated again: its plan is detached"


def _solve(x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, *rest: Any) -> SolveResult:
    """`backends.solve`. On the CPU, finite features that overflow the arithmetic raise ValueError."""
    options, backend = _options(rest), rest[10]
    labels = rest[11:14]  # trailing defaults are not passed
    pairs = Pairs(*labels) if labels and labels[0] is not None else None
    solved = SolveResult(*backends.solve(x, y, a, b, options, backend, pairs))
    if x.device.type == "cpu":
        refuse_overflow(solved.value, {"x": x, "y": y}, options)
    unreached.report(solved, options)
    return solved


def refuse_overflow(value: Tensor, inputs: dict[str, Tensor], options: SolveOptions) -> None:
    """Raise ValueError if a value is not finite. It names the input (all are finite) with the largest entry."""
    values = value.tolist()
    if all(map(math.isfinite, values)) if isinstance(values, list) else math.isfinite(values):
        return
    peak = {name: t.detach().abs().max().item() for name, t in inputs.items()}
    name = max(peak, key=lambda name: peak[name])
    raise ValueError(
        f"{name}: values up to {peak[name]:g} overflow {accumulation_dtype(inputs[name].dtype)} in the cost "
        f"{options.cost!r} or in cost / eps (eps = {options.eps:g}); scale them, or use float64 or a larger eps"
    )


def _options(rest: tuple[Any, ...]) -> SolveOptions:
    return SolveOptions(*rest[:10], *rest[14:])


def _solve_fake(x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, *rest: Any) -> SolveResult:
    like = x.new_empty(0, dtype=accumulation_dtype(x.dtype))
    return unwritten(like, x.shape[:-2], x.shape[-2], y.shape[-2], x.shape[-1], _options(rest))


def _plan_fake(
    x: Tensor, y: Tensor, alpha: Tensor, beta: Tensor, scale: Tensor, cost: str, backend: str = "auto"
) -> Tensor:
    return alpha.new_empty((*x.shape[:-1], y.shape[-2]))


# Scalar and SymInt, not float and int: a compiled step whose eps is annealed is then traced once, not per value.
ot_solve_op = register(
    "ot_solve(Tensor x, Tensor y, Tensor? a, Tensor? b, str cost, str solver, Scalar eps, SymInt iters, "
    "Scalar? tol, str value, bool need_x, bool need_y, bool need_a, bool need_b, str backend, Tensor? rows=None, "
    "Tensor? columns=None, Scalar rho=0, Scalar? reach_a=None, Scalar? reach_b=None) -> "
    "(Tensor value, Tensor alpha, Tensor beta, Tensor scale, Tensor marginal_error, Tensor iterations, "
    "Tensor grad_x, Tensor grad_y, Tensor grad_a, Tensor grad_b)",
    _solve,
    _solve_fake,
)
ot_plan_op = register(
    "ot_plan(Tensor x, Tensor y, Tensor alpha, Tensor beta, Tensor scale, str cost, str backend='auto') -> Tensor",
    backends.plan,
    _plan_fake,
)


def runs_natively(x: Tensor, y: Tensor, backend: str) -> bool:
    """Whether a plain solve of x and y may enter the native CPU code at once, past `torch.library`."""
    # `eager()` comes first: Dynamo of PyTorch 2.11 cannot trace is_neg.
    plain = eager() and x.is_cpu and type(x) is type(y) is Tensor and not (x.is_neg() or y.is_neg())
    return plain and dispatch.resolve("ot", backend=backend).backend == "native"


def value_and_gradients(
    x: Tensor, y: Tensor, options: SolveOptions, need_x: bool, need_y: bool, backend: str = "auto"
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The value and the gradients of x and y that are needed. Masses are uniform.

    x and y are on a CUDA device, or on the CPU where `runs_natively` holds.
    """
    if not x.is_cpu:
        solved = _solve(x.detach(), y.detach(), None, None, *options[:6], need_x, need_y, False, False, backend)
        return solved.value, solved.grad_x, solved.grad_y
    native_cpu = backends.module_of("native", "cpu")
    result = native_cpu.value_and_gradients(x, y, options, need_x, need_y)
    refuse_overflow(result[0], {"x": x, "y": y}, options)
    return result


class _Cost(torch.autograd.Function):
    """`value_and_gradients` as one node of the graph. The second output is that of `_WithGradient`."""

    @staticmethod
    def forward(ctx, x, y, options: SolveOptions):
        need_x, need_y, _ = ctx.needs_input_grad
        value, grad_x, grad_y = value_and_gradients(x, y, options, need_x, need_y)
        handle = value.new_empty(0)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(handle, grad_x, grad_y)
        ctx.dtype = x.dtype
        return value, handle

    @staticmethod
    def backward(ctx, grad_value, _):
        if grad_value is None:
            return None, None, None
        handle, *saved = ctx.saved_tensors
        grads = [None if grad is None else _times(grad, grad_value, ctx.dtype) for grad in saved]
        return *differentiable_once(grads, _NOT_TWICE, grad_value, handle), None


def _times(grad: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """`grad` times `factor`, rounded to a narrow dtype after the product, so that loss scaling has its effect."""
    grad = grad * (factor.view(-1, *[1] * (grad.dim() - 1)) if factor.dim() else factor)
    return grad if grad.dtype is dtype else grad.to(dtype)


def native_cost(x: Tensor, y: Tensor, options: SolveOptions) -> Tensor:
    """The differentiable value where `runs_natively` holds. Masses are uniform, and there is no `tol`."""
    if torch.is_grad_enabled() and (x.requires_grad or y.requires_grad):
        return _Cost.apply(x, y.view_as(y) if y is x else y, options)[0]
    return value_and_gradients(x, y, options, False, False)[0]


class _WithGradient(torch.autograd.Function):
    """The value of a solve. Backward multiplies its gradients in x, y, a and b by grad_output.

    The second output is empty and serves `differentiable_once`: its graph leads to every input that the gradients
    depend on. The graph of the value leads there too, but callers may change the value in place. `graph_handle` costs
    some 30 us a call more.
    """

    @staticmethod
    def forward(ctx, x, y, a, b, value, needs, *grads):
        handle = value.new_empty(0)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(handle, *grads)
        ctx.dtypes = [t.dtype if needed else None for t, needed in zip((x, y, a, b), needs, strict=True)]
        return value.clone(), handle

    @staticmethod
    def backward(ctx, grad_value, _):
        handle, *tensors = ctx.saved_tensors
        if grad_value is None:  # the value was not used
            return (None,) * (6 + len(tensors))
        saved = iter(tensors)
        grads: list[Tensor | None] = [None] * 4
        for i, dtype in enumerate(ctx.dtypes):
            if dtype is not None:
                grads[i] = _times(next(saved), grad_value, dtype)
        return *differentiable_once(grads, _NOT_TWICE, grad_value, handle), None, None, *(None for _ in tensors)


def ot_solve(
    x: Tensor,  # [n, d] or [G, n, d]
    y: Tensor,  # [m, d] or [G, m, d]
    a: Tensor | None,  # [n] or [G, n]; None is uniform
    b: Tensor | None,  # [m] or [G, m]
    cost: str,
    solver: str,
    eps: float,
    iters: int,
    tol: float | None,
    value: str,
    backend: str,
    pairs: Pairs | None = None,
    reach: tuple[float | None, float | None] = (None, None),
) -> tuple[Tensor, ...]:
    """Differentiable solve of checked arguments: value, alpha, beta, scale, marginal error, iterations.

    Second derivatives are not defined (P is detached) and raise.
    """
    options = (cost, solver, eps, iters, tol, value)
    paired = () if pairs is None else pairs
    if reach != (None, None):
        paired = (*(paired or (None, None, 0)), *reach)
    recording = torch.is_grad_enabled()
    needs = tuple([recording and t is not None and t.requires_grad for t in (x, y, a, b)])
    solve = _solve if calls_directly(x, y) else ot_solve_op
    if True not in needs:
        return solve(x, y, a, b, *options, *needs, backend, *paired)[:6]
    # Detached, not under no_grad: an error in compiled code would leave gradients switched off for good.
    masses = (mass if mass is None else mass.detach() for mass in (a, b))
    out = solve(x.detach(), y.detach(), *masses, *options, *needs, backend, *paired)
    # The same tensor twice (a self term) cannot be traced through one autograd.Function.
    y = y.view_as(y) if y is x else y
    b = b.view_as(b) if b is not None and b is a else b
    grads = [g for g, needed in zip(out[6:], needs, strict=True) if needed]
    return _WithGradient.apply(x, y, a, b, out[0], needs, *grads)[0], *out[1:6]
