"""Similarity-preserving distillation (Tung and Mori 2019): similarities between the images of a batch.

Gram matrices of feats[-2] have L2-normalised rows; the loss is their squared Frobenius distance over B^2.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from .base import Pair
from .weighted_term import WeightedOptions, WeightedTerm


@dataclass
class SPOptions(WeightedOptions):
    """Options of "sp".

    Attributes:
        weight: weight of the similarity loss.
    """

    weight: float = 3000.0


class SP(WeightedTerm):
    """weight * || rownorm(F_s F_s') - rownorm(F_t F_t') ||^2 / B^2."""

    term = "similarity"
    features_used = 2

    def __init__(self, pair: Pair, options: SPOptions) -> None:
        super().__init__(pair, options)
        if min(len(pair.student_shapes), len(pair.teacher_shapes)) < 2:
            raise ValueError("sp: compares the features before the last, but one of the networks has only one feature")

    def compared(self, student: list[Tensor], teacher: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return student[-2:-1], teacher[-2:-1]

    def distance(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        return F.mse_loss(similarity(student[0]), similarity(teacher[0]))


def similarity(f: Tensor) -> Tensor:
    """[B, ...] -> [B, B]: Gram matrix with unit rows."""
    f = f.flatten(1)
    return F.normalize(f @ f.T)
