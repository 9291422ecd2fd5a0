"""Transport for a given cost matrix in plain PyTorch: any device, any float dtype, the oracle.

One matrix C [n, m] may serve all problems. Memory is some four matrices per problem, shared or not.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import status
from . import reference
from .reference import SolveOptions


class MatrixResult(NamedTuple):
    """The outputs for G problems in their order, for every backend. A gradient that is not needed has shape [0]."""

    value: Tensor  # [G]
    alpha: Tensor  # [G, n]
    beta: Tensor  # [G, m]
    scale: Tensor  # [G]
    marginal_error: Tensor  # [G], or [0] without need_error
    iterations: Tensor  # [G] int32
    grad_a: Tensor  # [G, n]
    grad_b: Tensor  # [G, m]


def unwritten(costs: Tensor, problems: int, options: SolveOptions) -> MatrixResult:
    """Memory for the results, on the device of `costs` [1 or G, n, m] and in the accumulation dtype."""
    dtype, (n, m) = reference.accumulation_dtype(costs.dtype), costs.shape[-2:]
    dual = options.value == "dual"

    def new(*shape: int) -> Tensor:
        return costs.new_empty(shape, dtype=dtype)

    return MatrixResult(
        new(problems),
        new(problems, n),
        new(problems, m),
        new(problems),
        new(problems if options.need_error else 0),
        costs.new_empty(problems, dtype=torch.int32),
        new(problems, n) if options.need_a and dual else new(0),
        new(problems, m) if options.need_b and dual else new(0),
    )


def solve(costs: Tensor, a: Tensor, b: Tensor, options: SolveOptions) -> MatrixResult:
    """Solve G problems: costs [G, n, m], or [1, n, m] for all; masses a [G, n] and b [G, m]."""
    bad = flag(costs, a, b, options.relaxed)
    solved, _ = reference.solve_costs(costs.to(a.dtype), a, b, options)
    if costs.device.type != "cpu":
        solved = reference.poison(bad, solved)
    if not options.need_error:
        solved = solved._replace(marginal_error=costs.new_empty(0, dtype=a.dtype))
    return MatrixResult(*solved[:6], *solved[8:])


def gradient(costs: Tensor, alpha: Tensor, beta: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
    """weight_g P_g [G, n, m] for weight [G]. For costs [1, n, m] their sum over g, [1, n, m]."""
    plans = reference.plan(costs.to(alpha.dtype), alpha, beta, scale).mul_(weight[:, None, None])
    return plans if costs.shape[0] == plans.shape[0] else plans.sum(0, keepdim=True)


def flag(costs: Tensor, a: Tensor, b: Tensor, relaxed: bool) -> Tensor:
    """Problems with a bad value, bool [G]. On the CPU the first one raises ValueError with argument and place."""
    wrong = ~(costs.isfinite() & (costs >= 0))

    def describe(at: tuple[int, ...]) -> Exception:
        place = ", ".join(map(str, at if costs.shape[0] > 1 else at[1:]))
        return ValueError(f"C[{place}]: expected a finite cost >= 0, got {costs[at].item()}")

    status.guard(wrong, status.Code.OT_INPUT, describe)
    return wrong.flatten(1).any(-1) | reference.flag_masses(a, b, relaxed)
