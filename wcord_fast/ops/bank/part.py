"""A part of a bank: consecutive rows. `partials.py` computes its partials of the scores.

The draws are numbers of rows of the whole bank, a function of (seed, step, anchor), so every holder of a part makes all
draws of an anchor and scores those that fall into its rows. Losses, mean scores and gradients of all parts of a bank
add up to those of the whole bank: the positive's term and the constants belong to the part that holds the positive.
Log-sum-exps join by log-sum-exp.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Part(NamedTuple):
    """Rows [first, first + n) of a bank of `num_data`. n is the height of the accompanying tensors."""

    first: int
    num_data: int

    def holds(self, index: Tensor, height: int) -> Tensor:
        """bool [B]: True where a row of the whole bank is in this part of `height` rows."""
        return (index >= self.first) & (index < self.first + height)

    def local(self, index: Tensor, height: int) -> Tensor:
        """The whole bank's row numbers within this part. One that it holds stands for each that it does not hold."""
        return (index - self.first).clamp(0, height - 1)


def whole(banks: list[Tensor]) -> Part:
    """All rows of `banks`."""
    return Part(0, banks[0].shape[0])
