"""Optimal transport for given cost matrices: one for all problems, or one for each.

Sources: Sinkhorn (Cuturi, NeurIPS 2013); the unbalanced problem and its damped iteration of Chizat, Peyre, Schmitzer,
Vialard (Mathematics of Computation 2018).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ops import checks
from ..ops.first_order import first_order
from ..ops.keywords import keywords_of
from ..ops.sinkhorn import matrix as op
from ..ops.sinkhorn.reference import SolveOptions
from ..ops.tensors import accumulation_dtype
from .ot import solver_masses
from .ot_options import OTOptions, OTRelaxedSolution, OTSolution, Reach, checked_options, marginals, solution


@first_order
def ot_cost_from_matrix(
    C: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    solver: str = "sinkhorn",
    eps: float | None = None,
    iters: int = 50,
    tol: float | None = None,
    value: str = "cost",
    reach: Reach = None,
    backend: str = "auto",
) -> Tensor:
    """Transport cost between masses a and b where moving a unit from i to j costs C_ij; differentiable in C.

    The problem, its two values, `reach` and `tol` are those of `ot_cost`, with C in place of a cost of features.

    Args:
        C: [n, m], one matrix for all problems, or [G, n, m]; >= 0 and finite; fp16, bf16, fp32 or fp64; any strides.
        a: [n] or [G, n], masses of the rows, as in `ot_cost`; None is uniform.
        b: [m] or [G, m], masses of the columns.
        solver: "sinkhorn" or "ipot".
        eps, iters, tol, value, reach: as in `ot_cost`.
        backend: "auto", "reference", "native" (on CUDA without `reach`, for a matrix that fits in shared memory) or
            "triton" (CUDA, not fp64).

    G problems with one C cost two matrix products an iteration for all of them together; the gradient in C is then
    one matrix, the sum over the problems.

    Returns:
        Scalar, or [G] where C, a or b has a leading dimension; fp32 (fp64 if one of the three is). The gradient in C is
        P (held fixed, value="cost") or that of the problem's value at convergence (value="dual", which is P too); in a
        and b, value="dual" only, as in `ot_cost`.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device, option, or (on the CPU) a cost that is negative, NaN or
            infinite, masses that are negative, not finite or of wrong sum. On CUDA such a problem's cost is NaN and
            `wcord_fast.check()` raises.
        NotImplementedError: gradient of a or b with value="cost"; backend="triton" on the CPU or with fp64, "native" on
            CUDA with `reach` or a matrix that does not fit; and the derivatives that `ot_cost` refuses.
    """
    options = checked_options(solver=solver, eps=eps, iters=iters, tol=tol, value=value, reach=reach, backend=backend)
    problem = _problem(C, a, b, options, need_error=options.tol is not None)
    cost = op.value(*problem[:4], options.backend)
    return cost if problem.batched else cost[0]


@first_order
@keywords_of(ot_cost_from_matrix)
def ot_solve_from_matrix(
    C: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    **options: Any,
) -> OTSolution | OTRelaxedSolution:
    """`ot_cost_from_matrix` together with the potentials and the marginals; only `.cost` has a gradient."""
    return _solve(C, a, b, checked_options(**options))[0]


@first_order
@keywords_of(ot_cost_from_matrix)
def ot_plan_from_matrix(
    C: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """The plan P [n, m] or [G, n, m] of `ot_cost_from_matrix` with equal arguments; it carries no gradient."""
    with torch.no_grad():
        _, solved, costs, batched = _solve(C, a, b, checked_options(**options))
        plans = op.plan(costs, solved)
        return plans if batched else plans[0]


class _Problem(NamedTuple):
    """The arguments of the op, and whether the caller has G problems."""

    costs: Tensor  # [n, m] or [G, n, m]
    rows: Tensor  # [1 or G, n]
    columns: Tensor  # [1 or G, m]
    request: SolveOptions
    batched: bool


def _solve(
    costs: Tensor, a: Tensor | None, b: Tensor | None, options: OTOptions
) -> tuple[OTSolution | OTRelaxedSolution, op.MatrixResult, Tensor, bool]:
    """The solution in the caller's shape, the op's results and costs, and whether there are G problems."""
    problem = _problem(costs, a, b, options, need_error=True)
    solved = op.solve(*problem[:4], options.backend)
    fields = (*solved[:6], *marginals(solved, problem.rows, problem.columns, options))
    shaped = fields if problem.batched else tuple(t[0] if t.numel() else t for t in fields)
    return solution(*shaped), solved, problem.costs, problem.batched


def _problem(costs: Tensor, a: Tensor | None, b: Tensor | None, options: OTOptions, need_error: bool) -> _Problem:
    """The checked problem; ValueError or TypeError names a wrong argument."""
    plain = a is not None and b is not None and _is_plain(costs, a, b)
    problems = a.shape[0] if plain and a is not None else _check(costs, a, b)
    dtype = costs.dtype
    if any(mass is not None and mass.dtype == torch.float64 for mass in (a, b)):
        dtype = torch.float64
    acc = accumulation_dtype(dtype)
    make = _request.__wrapped__ if torch.compiler.is_compiling() else _request
    request = make(options, acc, need_error)
    if options.value == "cost" and torch.is_grad_enabled():
        for name, mass in (("a", a), ("b", b)):
            if mass is not None and mass.requires_grad:
                raise NotImplementedError(
                    f"{name} requires grad, but value='cost' has no gradient for masses; use value='dual' or "
                    f"{name}.detach()"
                )
    if plain and a is not None and b is not None:
        return _Problem(costs, a, b, request, True)
    rows, columns = (
        _masses(solver_masses(mass, acc, options.relaxed), size, acc, costs.device)
        for mass, size in ((a, costs.shape[-2]), (b, costs.shape[-1]))
    )
    return _Problem(costs.to(dtype), rows, columns, request, problems is not None)


@functools.lru_cache(maxsize=64)
def _request(options: OTOptions, dtype: torch.dtype, need_error: bool) -> SolveOptions:
    """The options of the op without gradients, cached; ValueError for an `eps` that overflows `dtype`."""
    checks.divisor("eps", options.eps, dtype, options.iters if options.solver == "ipot" else 1)
    return SolveOptions("given", *options[1:6], False, False, False, False, *options.reach, need_error)


def _is_plain(costs: Tensor, a: Tensor, b: Tensor) -> bool:
    """Whether this is one matrix with masses of G problems, all fp32 or all fp64. Else `_check` decides."""
    if not (type(costs) is type(a) is type(b) is Tensor) or costs.is_nested or a.is_nested or b.is_nested:
        return False
    shape, rows, columns = costs.shape, a.shape, b.shape
    return (
        costs.dtype is a.dtype is b.dtype
        and costs.dtype in (torch.float32, torch.float64)
        and costs.device == a.device == b.device
        and len(shape) == len(rows) == len(columns) == 2
        and rows[0] == columns[0] > 0
        and shape[0] == rows[1] > 0
        and shape[1] == columns[1] > 0
        and costs.layout is a.layout is b.layout is torch.strided
    )


def _masses(mass: Tensor | None, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Masses as the op takes them, [G, size] or [1, size]; uniform for None."""
    if mass is None:
        return torch.full((1, size), 1 / size, dtype=dtype, device=device)
    return mass if mass.dim() == 2 else mass.unsqueeze(0)


def _check(costs: Tensor, a: Tensor | None, b: Tensor | None) -> int | None:
    """The number of problems, None without a leading dimension; raises for an argument that does not fit."""
    if isinstance(costs, Tensor) and costs.dim() not in (2, 3):
        raise ValueError(f"C: expected shape [n, m] or [G, n, m], got {list(costs.shape)}")
    batched = isinstance(costs, Tensor) and costs.dim() == 3
    checks.tensor("C", costs, shape=("G", "n", "m") if batched else ("n", "m"))
    problems = costs.shape[0] if batched else None
    tensors = {"C": costs}
    for name, mass, size in (("a", a, costs.shape[-2]), ("b", b, costs.shape[-1])):
        if mass is None:
            continue
        leading = isinstance(mass, Tensor) and mass.dim() == 2
        checks.tensor(name, mass, shape=((problems or "G"), size) if leading else (size,))
        if leading:
            problems = mass.shape[0]
        tensors[name] = mass
    checks.same_device(**tensors)
    return problems
