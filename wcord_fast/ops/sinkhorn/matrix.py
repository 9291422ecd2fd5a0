"""The registered ops for a given cost matrix, and their `autograd.Function`.

The solve returns potentials. Backward makes the gradient in C from them, because the weights of the problems are known
there: the gradient in a shared matrix is then one matrix, however many problems there are.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import dispatch
from ..differentiable_once import differentiable_once
from ..eager import calls_directly
from ..library import register
from ..tensors import accumulation_dtype
from . import matrix_reference, unreached
from .autograd import refuse_overflow
from .matrix_reference import MatrixResult
from .reference import SolveOptions

_NOT_TWICE = "the gradient of an optimal-transport cost cannot be differentiated again: its plan is detached"


@functools.cache
def _native() -> ModuleType:
    from . import matrix_native

    return matrix_native


@functools.cache
def _native_cuda() -> ModuleType:
    from . import matrix_native_cuda

    return matrix_native_cuda


@functools.cache
def _triton() -> ModuleType:
    from . import matrix_triton

    return matrix_triton


class Sizes(NamedTuple):
    """What decides on a backend for a solve beside dtype and device."""

    problems: int  # G
    n: int
    m: int
    own: bool  # each problem has a matrix
    relaxed: bool = False


def choose(
    kind: str, dtype: torch.dtype, backend: str, sizes: Sizes | None = None, index: int | None = None
) -> dispatch.Choice:
    """The backend for costs of `dtype` on a kind of device.

    Args:
        sizes: of a solve; None: of a gradient, whose sizes do not matter.
        index: number of the CUDA device; None: the current one.
    """

    def unfit(candidate: str) -> str | None:
        if candidate == "triton":
            return _triton().unsupported(dtype)
        if candidate != "native" or sizes is None:
            return None
        cells = sizes.problems * sizes.n * sizes.m
        products = sizes.problems > 1 and not sizes.own and cells > _native_cuda().MOST_CELLS
        if products and dispatch.requested(backend) == "auto" and _triton_runs(kind, dtype):
            return f"products solve {sizes.problems} problems of {sizes.n} x {sizes.m} with one matrix faster"
        return _native_cuda().unavailable_reason(sizes.n, sizes.m, dtype, index, sizes.relaxed)

    return dispatch.resolve("ot_matrix", device=kind, backend=backend, unfit=None if kind == "cpu" else unfit)


def _triton_runs(kind: str, dtype: torch.dtype) -> bool:
    return dispatch.cannot_run("triton", kind) is None and _triton().unsupported(dtype) is None


def _module(costs: Tensor, backend: str, sizes: Sizes | None = None) -> ModuleType:
    device = costs.device
    chosen = choose(device.type, costs.dtype, backend, sizes, device.index).backend
    native = _native if device.type == "cpu" else _native_cuda
    return {"native": native, "triton": _triton}.get(chosen, lambda: matrix_reference)()


def _options(solver, eps, iters, tol, value, reach_a, reach_b, need_a, need_b, need_error) -> SolveOptions:
    return SolveOptions(
        "given", solver, eps, iters, tol, value, False, False, need_a, need_b, reach_a, reach_b, need_error
    )


def _problems(costs: Tensor, a: Tensor, b: Tensor) -> int:
    return max(costs.shape[0], a.shape[0], b.shape[0])


def _stacked(costs: Tensor) -> Tensor:
    """One matrix [n, m] as [1, n, m]; G matrices unchanged."""
    return costs if costs.dim() == 3 else costs.unsqueeze(0)


def _solve(costs: Tensor, a: Tensor, b: Tensor, *rest: Any) -> MatrixResult:
    *fields, backend = rest
    options, g = _options(*fields), _problems(costs, a, b)
    own, n, m = costs.shape
    sizes = Sizes(g, n, m, own > 1, options.relaxed)
    solved = _module(costs, backend, sizes).solve(costs, a.expand(g, -1), b.expand(g, -1), options)
    if costs.device.type == "cpu":
        refuse_overflow(solved.value, {"C": costs}, options)
    unreached.report(solved, options)
    return solved


def _solve_fake(costs: Tensor, a: Tensor, b: Tensor, *rest: Any) -> MatrixResult:
    return matrix_reference.unwritten(costs, _problems(costs, a, b), _options(*rest[:-1]))


def _gradient(costs: Tensor, alpha: Tensor, beta: Tensor, scale: Tensor, weight: Tensor, backend: str) -> Tensor:
    return _module(costs, backend).gradient(costs, alpha, beta, scale, weight)


def _gradient_fake(costs: Tensor, alpha: Tensor, *_: Any) -> Tensor:
    return alpha.new_empty(costs.shape)


solve_op = register(
    "ot_matrix_solve(Tensor costs, Tensor a, Tensor b, str solver, Scalar eps, SymInt iters, Scalar? tol, str value, "
    "Scalar? reach_a, Scalar? reach_b, bool need_a, bool need_b, bool need_error, str backend) -> "
    "(Tensor value, Tensor alpha, Tensor beta, Tensor scale, Tensor marginal_error, "
    "Tensor iterations, Tensor grad_a, Tensor grad_b)",
    _solve,
    _solve_fake,
)
gradient_op = register(
    "ot_matrix_gradient(Tensor costs, Tensor alpha, Tensor beta, Tensor scale, Tensor weight, str backend) -> Tensor",
    _gradient,
    _gradient_fake,
)


class _WithGradient(torch.autograd.Function):
    """The values [G] of a solve. Backward makes the gradient in C, and multiplies those in a and b by the weights."""

    @staticmethod
    def forward(ctx, costs, a, b, backend, *solved):
        solved = MatrixResult(*solved)
        handle = solved.value.new_empty(0)
        ctx.set_materialize_grads(False)
        ctx.backend = backend
        ctx.masses = (a.shape, a.dtype), (b.shape, b.dtype)
        ctx.save_for_backward(handle, costs, solved.alpha, solved.beta, solved.scale, solved.grad_a, solved.grad_b)
        return solved.value.clone(), handle

    @staticmethod
    def backward(ctx, weight, _):
        if weight is None:
            return (None,) * 12
        handle, costs, *kept = ctx.saved_tensors
        grads = _gradients(weight.detach(), costs, kept, ctx.backend, ctx.needs_input_grad, ctx.masses)
        return *differentiable_once(grads, _NOT_TWICE, weight, handle), *(None,) * 9


class _Value(torch.autograd.Function):
    """The values [G] of a native solve as one node of the graph, with the gradients of `_WithGradient`."""

    @staticmethod
    def forward(ctx, costs, a, b, options: SolveOptions):
        _, need_a, need_b, _ = ctx.needs_input_grad
        if need_a or need_b:
            options = options._replace(need_a=need_a, need_b=need_b)
        values, kept = _native().value(costs, a, b, options)
        handle = values.new_empty(0)
        ctx.set_materialize_grads(False)
        ctx.options = options
        ctx.masses = (a.shape, a.dtype), (b.shape, b.dtype)
        ctx.save_for_backward(handle, costs, kept)
        return values, handle

    @staticmethod
    def backward(ctx, weight, _):
        if weight is None:
            return (None,) * 4
        handle, costs, kept = ctx.saved_tensors
        needs, options = ctx.needs_input_grad, ctx.options
        if not (needs[1] or needs[2]) and calls_directly(costs, weight):
            grads = [_native().gradient_of_kept(costs, kept, weight), None, None]
        else:
            parts = _native().parts(kept, weight.shape[0], costs, options)
            grads = _gradients(weight.detach(), costs, parts, "native", needs, ctx.masses)
        return *differentiable_once(grads, _NOT_TWICE, weight, handle), None


def _gradients(weight, costs, kept, backend, needs, masses) -> list[Tensor | None]:
    """The gradients in costs, a and b, of which each may be None, for gradients `weight` [G] of the values.

    Args:
        kept: alpha, beta, scale, grad_a and grad_b of the solve.
        masses: the shapes and dtypes of a and b.
    """
    alpha, beta, scale, grad_a, grad_b = kept
    grads: list[Tensor | None] = [None] * 3
    if needs[0]:
        given = costs.detach()
        run = _gradient if calls_directly(given, weight) else gradient_op
        grad = run(_stacked(given), alpha, beta, scale, weight.contiguous(), backend).to(costs.dtype)
        grads[0] = grad.reshape(costs.shape)
    for i, (by_mass, (shape, dtype)) in enumerate(zip((grad_a, grad_b), masses, strict=True), 1):
        if needs[i]:
            grads[i] = (weight.unsqueeze(-1) * by_mass).sum_to_size(shape).to(dtype)
    return grads


def value(costs: Tensor, a: Tensor, b: Tensor, options: SolveOptions, backend: str) -> Tensor:
    """`solve(...).value`. Plain CPU tensors bypass `torch.library` and get one node of the graph."""
    device = costs.device.type
    direct = options.tol is None and device == "cpu" and calls_directly(costs, a, b)
    if not direct or dispatch.resolve("ot_matrix", device=device, backend=backend).backend != "native":
        return solve(costs, a, b, options, backend).value
    if torch.is_grad_enabled() and (costs.requires_grad or a.requires_grad or b.requires_grad):
        return _Value.apply(costs, a, b, options)[0]
    return _native().value(costs, a, b, options)[0]


def solve(
    costs: Tensor,  # [G, n, m], or [n, m] for all problems
    a: Tensor,  # [G, n] or [1, n], in the accumulation dtype of costs
    b: Tensor,  # [G, m] or [1, m]
    options: SolveOptions,  # checked; its `need_` fields are set here
    backend: str,
) -> MatrixResult:
    """Differentiable solve of checked arguments: `value` has a gradient for C, a and b. Second derivatives raise."""
    costs = _stacked(costs)
    recording = torch.is_grad_enabled()
    need_c, need_a, need_b = (recording and t.requires_grad for t in (costs, a, b))
    fields = (*options[1:6], options.reach_a, options.reach_b)
    run = _solve if calls_directly(costs, a, b) else solve_op
    plain = (t if t is None else t.detach() for t in (costs, a, b))  # see autograd.ot_solve
    solved = MatrixResult(*run(*plain, *fields, need_a, need_b, options.need_error, backend))
    if not (need_c or need_a or need_b):
        return solved
    return solved._replace(value=_WithGradient.apply(costs, a, b, backend, *solved)[0])


def plan(costs: Tensor, solved: MatrixResult) -> Tensor:
    """P [G, n, m] of a solve."""
    from . import reference

    return reference.plan(_stacked(costs).to(accumulation_dtype(costs.dtype)), solved.alpha, solved.beta, solved.scale)
