"""The solver in compiled code for CPU tensors: csrc/cpu/sinkhorn*.

Two regimes, chosen by size: *resident* keeps one n x m matrix per problem (one per thread for small problems of a
batch), *streaming* keeps none and recomputes strips of it in every sweep. README.md beside this file says how.
Relaxed marginals and Euclidean costs go through a cost matrix and the solver for given ones (matrix_native.py).
"""

from __future__ import annotations

import os
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from .. import checks, native_module
from ..tensors import accumulation_dtype, contiguous
from . import matrix_native, reference
from .autograd import refuse_overflow
from .native_fields import option_fields, pair_fields, problem_fields, result_fields
from .pairs import Pairs
from .reference import SolveOptions, SolveResult

DEFAULT_BUDGET = 1 << 30  # bytes of stored matrices: n = m = 16384 in fp32


def solve_op(
    x: Tensor,  # [n, d] or [G, n, d]
    y: Tensor,  # [m, d] or [G, m, d]
    a: Tensor | None,  # [n] or [G, n]; None is uniform
    b: Tensor | None,  # [m] or [G, m]
    options: SolveOptions,
    pairs: Pairs | None = None,
) -> SolveResult:
    """`reference.ot_solve` in x's leading shape. Raises the errors of `reference.flag_inputs`.

    The solver detects bad values in the pass that reads them.
    """
    dtype = accumulation_dtype(x.dtype)
    x, y = contiguous(x, dtype), contiguous(y, dtype)
    a, b = a if a is None else contiguous(a, dtype), b if b is None else contiguous(b, dtype)
    if options.cost == "euclidean" or options.relaxed:
        return _by_matrix(x, y, a, b, options)
    g, n, m, d = x.shape[:-2], x.shape[-2], y.shape[-2], x.shape[-1]
    labels, _alive = pair_fields(pairs)
    solved = reference.unwritten(x, g, n, m, d, options)
    native = native_module.module()
    record = native.OtSolve(
        **problem_fields(x, y, a, b, g[0] if g else 1),
        **option_fields(options),
        **result_fields(solved),
        **labels,
        budget=budget(),
        **native_module.on_cpu(),
    )
    fine = native.cpu_ot_solve(record)
    if not fine:
        _refuse(x, y, a, b, options)
    return solved


def _by_matrix(x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, options: SolveOptions) -> SolveResult:
    """`solve_op` by way of a stored cost matrix."""
    batched = x.dim() == 3
    if not batched:
        x, y = x.unsqueeze(0), y.unsqueeze(0)
        a, b = (None if mass is None else mass.unsqueeze(0) for mass in (a, b))
    a, b = reference.masses(a, x), reference.masses(b, y)
    reference.flag_inputs(x, y, a, b, options.cost, options.relaxed)
    costs = reference.cost_matrix(x, y, options.cost).clamp_(min=0)  # a cosine of 1 may be rounded up
    refuse_overflow(costs.amax(), {"x": x, "y": y}, options)  # which names the features, not the costs
    result = matrix_native.solve(costs, a, b, options)
    none = x.new_empty(0), x.new_empty(0)
    solved = SolveResult(*result[:6], *none, *result[6:])
    if options.need_x or options.need_y:
        plan = reference.plan(costs, solved.alpha, solved.beta, solved.scale)
        solved = reference.with_feature_grads(solved, costs, plan, x, y, options)
    return solved if batched else SolveResult(*(t.squeeze(0) if t.numel() or t.dim() > 1 else t for t in solved))


def _refuse(x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, options: SolveOptions) -> NoReturn:
    """Raise the error that names the first bad value of a problem that the native code has refused."""
    if x.dim() == 2:
        x, y = x.unsqueeze(0), y.unsqueeze(0)
        a, b = (None if mass is None else mass.unsqueeze(0) for mass in (a, b))
    reference.flag_inputs(x, y, reference.masses(a, x), reference.masses(b, y), options.cost)
    raise ValueError(f"a, b: expected masses with sum 1 (to {reference.SUM_TOLERANCE:g})")


def value_and_gradients(
    x: Tensor, y: Tensor, options: SolveOptions, need_x: bool, need_y: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Value [] or [G] and the needed gradients [G, n, d], [G, m, d] of `solve_op` for uniform masses."""
    dtype = accumulation_dtype(x.dtype)
    x, y = contiguous(x, dtype), contiguous(y, dtype)
    lead = x.shape[:-2]
    value = x.new_empty(lead)
    grad_x = x.new_empty(x.shape) if need_x else None
    grad_y = y.new_empty(y.shape) if need_y else None
    native = native_module.module()
    record = native.OtSolve(
        **problem_fields(x, y, None, None, lead[0] if lead else 1),
        **option_fields(options),
        out_value=value.data_ptr(),
        grad_x=0 if grad_x is None else grad_x.data_ptr(),
        grad_y=0 if grad_y is None else grad_y.data_ptr(),
        budget=budget(),
        threads=native_module.threads(),
    )
    if not native.cpu_ot_solve(record):
        _refuse(x, y, None, None, options)
    return value, grad_x, grad_y


def ot_plan(x: Tensor, y: Tensor, alpha: Tensor, beta: Tensor, scale: Tensor, cost: str) -> Tensor:
    """`reference.ot_plan` with the cost as `ot_solve` rounded it: the columns meet their marginal to rounding."""
    if cost == "euclidean":  # `_by_matrix` took the reference's cost
        return reference.ot_plan(x, y, alpha, beta, scale, cost)
    dtype = alpha.dtype
    x, y, alpha, beta, scale = (t.to(dtype).contiguous() for t in (x, y, alpha, beta, scale))
    plan = x.new_empty((x.shape[0], x.shape[1], y.shape[1]))
    native = native_module.module()
    record = native.OtPlanMatrix(
        dtype=native_module.dtype_code(dtype),
        problems=x.shape[0],
        n=x.shape[1],
        m=y.shape[1],
        dim=x.shape[2],
        x=x.data_ptr(),
        y=y.data_ptr(),
        alpha=alpha.data_ptr(),
        beta=beta.data_ptr(),
        scale=scale.data_ptr(),
        cost=native.OT_COSTS[cost],
        out=plan.data_ptr(),
        **native_module.on_cpu(),
    )
    native.cpu_ot_plan_matrix(record)
    return plan


def budget() -> int:
    """The bytes that stored matrices may take: WCORD_FAST_OT_BYTES, or 1 GiB."""
    text = os.environ.get("WCORD_FAST_OT_BYTES")
    if text is None:
        return DEFAULT_BUDGET
    try:
        return checks.integer("WCORD_FAST_OT_BYTES", int(text), least=0, below=2**63)
    except ValueError as e:
        raise ValueError(f"WCORD_FAST_OT_BYTES: expected a number of bytes, got {text!r}") from e


def regime(n: int, m: int, dim: int, dtype: torch.dtype = torch.float32, problems: int = 1) -> tuple[str, str]:
    """(name, reason) of the regime for a call with these shapes."""
    limit = budget()
    result = layout(n, m, dim, dtype, problems, budget=limit)
    size = n * m * accumulation_dtype(dtype).itemsize
    sign = "<=" if result.regime == "resident" else ">"
    division = "each thread solves problems of its own" if result.per_thread else "all threads share one problem"
    scratch = f"scratch {result.scratch_bytes:,} bytes"
    return result.regime, f"{n} x {m} matrix of {size:,} bytes {sign} budget {limit:,}; {division}; {scratch}"


class Layout(NamedTuple):
    """The choice of the native code for a call with given shapes."""

    regime: str  # "resident" or "streaming"
    per_thread: bool  # each thread solves whole problems
    scratch_bytes: int


def layout(
    n: int,
    m: int,
    dim: int,
    dtype: torch.dtype = torch.float32,
    problems: int = 1,
    *,
    gradients: bool = True,
    budget: int = DEFAULT_BUDGET,
    threads: int | None = None,
) -> Layout:
    """The native code's choice, for gradients of both x and y or of neither, `budget` bytes and a number of threads."""
    native = native_module.module()
    plan = native.OtPlan(
        dtype=native_module.dtype_code(accumulation_dtype(dtype)),
        problems=problems,
        n=n,
        m=m,
        dim=dim,
        want_grad_x=gradients,
        want_grad_y=gradients,
        budget=budget,
        threads=native_module.threads() if threads is None else threads,
    )
    native.cpu_ot_plan(plan)
    (regime,) = (name for name, code in native.OT_REGIMES.items() if code == plan.regime)
    return Layout(regime, bool(plan.per_thread), plan.scratch_bytes)
