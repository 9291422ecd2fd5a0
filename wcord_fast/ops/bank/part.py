"""A part of a bank: consecutive rows of it, and what it contributes to the scores of anchors against all of it.

The draws are numbers of rows of the whole bank, a function of (seed, step, anchor), so every holder of a part makes
all draws of an anchor and scores those that fall into its rows. Losses, mean scores and gradients of all parts of a
bank add up to the whole's: the positive's term and the constants belong to the part that holds the positive.
Log-sum-exps join by log-sum-exp.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..sampling.spec import DrawSpec


class Part(NamedTuple):
    """Rows [first, first + n) of a bank of `num_data`, where n is the height of the tensors that come with it."""

    first: int
    num_data: int

    def holds(self, index: Tensor, height: int) -> Tensor:
        """bool [B]: True where a row of the whole bank is in this part of `height` rows."""
        return (index >= self.first) & (index < self.first + height)

    def local(self, index: Tensor, height: int) -> Tensor:
        """Rows of the whole bank as rows of this part; what it does not hold becomes one that it does."""
        return (index - self.first).clamp(0, height - 1)


def whole(banks: list[Tensor]) -> Part:
    """All rows of `banks`."""
    return Part(0, banks[0].shape[0])


def nce(anchors, banks, part: Part, index, log_z, spec: DrawSpec, temperature, needs_grad, plan, backend):
    """This part's share of the losses and their gradients: ([S, B], [S, B, D] or empty)."""
    if banks[0].shape[0] == 0:
        return _nothing(anchors, banks, needs_grad)
    module, plan, drawer = _select("bank_nce", anchors, banks, spec, plan, backend, part)
    return module.bank_nce(anchors, banks, index, log_z, spec, temperature, needs_grad, plan, drawer, part)


def mean_score(anchors, banks, part: Part, index, spec: DrawSpec, needs_grad, plan, backend):
    """This part's share of the mean negative scores and their gradients: ([S, B], [S, B, D] or empty)."""
    if banks[0].shape[0] == 0:
        return _nothing(anchors, banks, needs_grad)
    module, plan, drawer = _select("bank_mean_score", anchors, banks, spec, plan, backend, part)
    return module.bank_mean_score(anchors, banks, index, spec, needs_grad, plan, drawer, part)


def log_sum_exp(anchors, banks, part: Part, index, spec: DrawSpec, temperature, plan, backend) -> Tensor:
    """log of the sum of exp(score / tau) over all anchors and this part's share of their K_b + 1 scores: [S]."""
    if banks[0].shape[0] == 0:
        return _nothing(anchors, banks, False)[0].new_full((len(banks),), -torch.inf)
    module, plan, drawer = _select("bank_log_z", anchors, banks, spec, plan, backend, part)
    return module.bank_log_sum_exp(anchors, banks, index, spec, temperature, plan, drawer, part)


def _select(*args) -> tuple:
    from .op import select  # which imports this module

    return select(*args)


def _nothing(anchors, banks, needs_grad) -> tuple[Tensor, Tensor]:
    from .reference import accumulate_dtype

    acc = accumulate_dtype(anchors, *banks)
    value = torch.zeros(anchors.shape[:2], dtype=acc, device=anchors.device)
    return value, torch.zeros(anchors.shape if needs_grad else (0,), dtype=acc, device=anchors.device)
