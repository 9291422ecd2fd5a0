"""Checked options of the transport functions, and the solutions that they return."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..ops import checks, dispatch

COSTS = ("cosine", "sqeuclidean", "euclidean")
DEFAULT_EPS = {"ipot": 0.5, "sinkhorn": 0.05}
VALUES = ("cost", "dual")
BALANCED = (None, None)

Reach: TypeAlias = float | tuple[float, float] | None


class OTSolution(NamedTuple):
    """A solved problem. Shapes for [G, n, d] input; 2-D input drops G. fp32, or fp64 for fp64 input.

    Attributes:
        cost: [G] the value chosen by `value`; the only field with a gradient.
        alpha: [G, n] log-scalings of the rows: P = exp(alpha_i + beta_j - scale * C_ij); -inf at zero mass. With
            `pairs` the plan also has the factor R_ij / (a_i b_j) of the reference plan, see `ot_plan`.
        beta: [G, m] log-scalings of the columns.
        scale: [G] 1 / eps for sinkhorn, iterations / eps for ipot.
        marginal_error: [G] sum_i |sum_j P_ij - a_i| (with `reach`: of the rows' sums from `row_mass`); the columns meet
            b (`column_mass`) to rounding.
        iterations: [G] int32, the number of iterations.
    With `debias`, `cost` is the debiased value and the other fields belong to the problem (x, y).
    """

    cost: Tensor
    alpha: Tensor
    beta: Tensor
    scale: Tensor
    marginal_error: Tensor
    iterations: Tensor


class OTRelaxedSolution(NamedTuple):
    """A solved problem with `reach`: the fields of `OTSolution`, and the masses of its plan.

    Attributes:
        row_mass: [G, n] the row sums of P at convergence (`marginal_error` is P's distance from them): a, or
            a exp(-f / reach) for a relaxed marginal with potential f.
        column_mass: [G, m] the column sums of P; their sum is the mass that is moved.
    """

    cost: Tensor
    alpha: Tensor
    beta: Tensor
    scale: Tensor
    marginal_error: Tensor
    iterations: Tensor
    row_mass: Tensor
    column_mass: Tensor


def solution(*fields: Tensor) -> OTSolution | OTRelaxedSolution:
    """The six fields of a solution, or the eight of one with relaxed marginals."""
    return OTSolution(*fields) if len(fields) == 6 else OTRelaxedSolution(*fields)


class OTOptions(NamedTuple):
    """Checked options of a solve; `eps` is resolved to the solver's default."""

    cost: str
    solver: str
    eps: float
    iters: int
    tol: float | None
    value: str
    reach: tuple[float | None, float | None]  # (rows, columns); None: the marginal is met
    backend: str

    @classmethod
    def checked(
        cls,
        *,
        solver: str,
        eps: float | None,
        iters: int,
        tol: float | None,
        value: str,
        reach: Reach,
        backend: str,
        cost: str = "cosine",  # has no effect on a given cost matrix
    ) -> OTOptions:
        """The options; ValueError or TypeError names a wrong one."""
        checks.choice("cost", cost, COSTS)
        checks.choice("solver", solver, DEFAULT_EPS)
        checks.choice("value", value, VALUES)
        checks.choice("backend", backend, ("auto", *dispatch.BACKENDS))
        if value == "dual" and solver != "sinkhorn":
            raise ValueError(f"value='dual': expected solver='sinkhorn', got solver={solver!r}, which has no fixed eps")
        eps = DEFAULT_EPS[solver] if eps is None else checks.positive("eps", eps)
        iters = checks.integer("iters", iters, least=1, below=2**31)
        tol = None if tol is None else checks.positive("tol", tol)
        return cls(cost, solver, eps, iters, tol, value, _checked_reach(reach, solver), backend)

    @property
    def relaxed(self) -> bool:
        return self.reach != BALANCED


def _checked_reach(reach: Reach, solver: str) -> tuple[float | None, float | None]:
    """One number for both sides or one for each; infinity means a marginal that is met, so None."""
    if reach is None:
        return BALANCED
    sides = tuple(reach) if isinstance(reach, tuple | list) else (reach, reach)
    if len(sides) != 2:
        raise ValueError(f"reach: expected a number or a pair of numbers (rows, columns), got {reach!r}")
    rows, columns = (None if r is None else checks.positive("reach", r, finite=False) for r in sides)
    checked = tuple(None if r == math.inf else r for r in (rows, columns))
    if checked != BALANCED and solver != "sinkhorn":
        raise ValueError(f"reach={reach!r}: expected solver='sinkhorn', got solver={solver!r}, which has no fixed eps")
    return checked[0], checked[1]


# For calls in a loop; typed, so that True is never taken for a checked 1.
_cached_options = functools.lru_cache(maxsize=64, typed=True)(OTOptions.checked)


def checked_options(**options: Any) -> OTOptions:
    """`OTOptions.checked`, cached."""
    if not torch.compiler.is_compiling():
        try:
            return _cached_options(**options)
        except TypeError:  # an option that cannot be hashed or has a wrong type, which the next line names
            pass
    return OTOptions.checked(**options)


def marginals(solved, a: Tensor | None, b: Tensor | None, options: OTOptions) -> tuple[Tensor, ...]:
    """`row_mass` and `column_mass` of relaxed problems; empty for balanced ones."""
    if not options.relaxed:
        return ()
    sides = []
    for potential, mass, reach in ((solved[1], a, options.reach[0]), (solved[2], b, options.reach[1])):
        uniform = torch.full_like(potential, 1 / potential.shape[-1])
        mass = uniform if mass is None else mass.detach().expand_as(potential)
        if reach is not None:
            scaled = torch.where(mass > 0, potential - mass.log(), 0)  # the potential over eps
            mass = mass * torch.exp(scaled * (-options.eps / reach))
        sides.append(mass)
    return tuple(sides)
