"""Known pairs of two batches, and the reference plan that prefers them. README.md beside this file derives kappa."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Pairs(NamedTuple):
    """Known pairs: rows and columns with equal labels. A negative label has no pair. `rho` is that of `log_ratio`."""

    rows: Tensor  # int64 [G, n], or [n] of one problem
    columns: Tensor  # int64 [G, m]
    rho: float = 0.0

    def mask(self) -> Tensor:
        """bool [G, n, m]."""
        rows, columns = self.rows.unsqueeze(-1), self.columns.unsqueeze(-2)
        return (rows == columns) & (rows >= 0)


def log_ratio(a: Tensor, b: Tensor, pairs: Pairs) -> Tensor:
    """kappa [G] of a reference plan R: the logarithm of R / (a b^T) on the pairs, relative to its value elsewhere.

    R = rho * (a b^T on the pairs, over its mass mu) + (1 - rho) a b^T, so kappa = log(1 + rho / ((1 - rho) mu)). kappa
    is 0 if no row with mass has a partner with mass.
    """
    mass = (pairs.mask() * (a.unsqueeze(-1) * b.unsqueeze(-2))).sum((-2, -1))
    return kappa_of(mass, pairs.rho)


def kappa_of(mass: Tensor, rho: float) -> Tensor:
    """`log_ratio` from the mass [G] of a b^T on the pairs."""
    return torch.where(mass > 0, torch.log1p(rho / ((1 - rho) * mass)), 0)


def below_dual(kappa: Tensor, rho: float, eps: float) -> Tensor:
    """eps log(1 - rho) where there are pairs, else 0, [G]: the potentials' sum is the dual value plus this.

    Off the pairs the reference plan is (1 - rho) a b^T.
    """
    return (kappa > 0) * kappa.new_full((), eps * math.log1p(-rho))


def log_reference(a: Tensor, b: Tensor, pairs: Pairs) -> Tensor:
    """log(R / (a b^T)) - log(1 - rho), [G, n, m]: kappa on the pairs, else 0."""
    return pairs.mask() * log_ratio(a, b, pairs)[:, None, None]
