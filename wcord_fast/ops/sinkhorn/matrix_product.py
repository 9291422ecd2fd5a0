"""Many problems with one given cost by matrix products, in plain PyTorch and without waiting for a device.

K = exp(shift - s C) is made once (for ipot, once an iteration), and a half step of all problems is one product with K.
Scalings are numbers here, not logarithms: a problem that leaves their safe range is not solved, and says so by a mask.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .reference import CHECK_EVERY, SolveOptions, _row_error, damping, wanted_rows

# As in csrc/cpu/sinkhorn_shared.inl: entries of K are normal numbers, and products of two scalings do not overflow.
MOST_SPREAD = 69.0  # of s C in a row
LEAST, MOST = 2.0**-90, 2.0**90  # of a sum


class Scaled(NamedTuple):
    """Potentials of G problems, of which only those that are `solved` count."""

    alpha: Tensor  # [G, n]
    beta: Tensor  # [G, m]
    scale: Tensor  # [G]
    iterations: Tensor  # int32 [G]
    solved: Tensor  # bool [G]


def iterate(costs: Tensor, a: Tensor, b: Tensor, options: SolveOptions) -> Scaled:
    """At most `iters` iterations of the cost [n, m] with masses a [G, n] and b [G, m], all fp32."""
    ipot, eps, iters, tol = options.solver == "ipot", *options[2:5]
    damp_a, damp_b = damping(options.reach_a, eps), damping(options.reach_b, eps)
    # A damped step does not undo a shift of a row.
    least = torch.zeros_like(costs[:, :1]) if options.relaxed else costs.amin(-1, keepdim=True)
    spread = (costs - least).amax()
    log_a, log_b = a.log(), b.log()
    column = b > 0
    v = ahead = column.to(b.dtype)
    alpha, beta = a.new_empty(a.shape), b.new_empty(b.shape)
    scale = a.new_zeros(a.shape[0])
    iterations = torch.full_like(scale, iters, dtype=torch.int32)
    active = torch.ones_like(scale, dtype=torch.bool)
    solved = active.clone()
    for t in range(1, iters + 1):
        s = (t if ipot else 1) / eps
        if ipot or t == 1:
            kernel = torch.exp((least - costs) * s)
            shift = least.mT * s  # [1, n]
            solved = solved & (~active | (spread * s <= MOST_SPREAD))
        row_sums = (ahead if ipot else v) @ kernel.mT
        u = _scaling(a, row_sums, damp_a)
        column_sums = u @ kernel
        v_new = _scaling(b, column_sums, damp_b)
        safe = _safe(row_sums) & _safe(column_sums)
        if ipot:
            ahead = torch.where(column, v_new * (v_new / v), 0)
            safe = safe & _safe(torch.where(column, ahead, 1))
        v = v_new
        solved = solved & (~active | safe)
        going = active.unsqueeze(-1)
        tested = t % CHECK_EVERY == 0 and t < iters
        if tested or t == iters:
            alpha = torch.where(going, log_a - damp_a * (row_sums.log() - shift), alpha)
            beta = torch.where(going, log_b - damp_b * column_sums.log(), beta)
            scale = torch.where(active, s, scale)
        if tol is not None and tested:
            reached = _row_error(u * (v @ kernel.mT), wanted_rows(a, alpha, options)) <= tol
            iterations = torch.where(active & reached, t, iterations)
            active = active & ~reached
    return Scaled(alpha, beta, scale, iterations, solved)


def _scaling(mass: Tensor, sums: Tensor, damp: float) -> Tensor:
    return mass / sums if damp == 1 else mass * sums.pow(-damp)


def _safe(numbers: Tensor) -> Tensor:
    """bool [G]: every one lies in the safe range. NaN does not."""
    return ((numbers >= LEAST) & (numbers <= MOST)).all(-1)
