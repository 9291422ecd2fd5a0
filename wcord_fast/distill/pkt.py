"""Probabilistic knowledge transfer (Passalis and Tefas 2018): neighbourhoods in the batch as distributions.

Rows of p are (cosine + 1) / 2 of the penultimate features, normalised to sum 1. The loss is the *mean* of
p_t log(p_t / p_s) over all pairs. A divergence would be the sum of each row, hence the weight 30,000.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import Pair
from .weighted_term import WeightedOptions, WeightedTerm

EPSILON = 1e-7  # as in the authors' code


@dataclass
class PKTOptions(WeightedOptions):
    """Options of "pkt".

    Attributes:
        weight: weight of the transfer loss.
    """

    weight: float = 30000.0


class PKT(WeightedTerm):
    """weight * mean of p_t log(p_t / p_s)."""

    term = "transfer"
    features_used = 1

    def __init__(self, pair: Pair, options: PKTOptions) -> None:
        super().__init__(pair, options)
        _ = pair.student_width, pair.teacher_width  # both must end with a vector

    def compared(self, student: list[Tensor], teacher: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return student[-1:], teacher[-1:]

    def distance(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        p_s, p_t = neighbourhood(student[-1]), neighbourhood(teacher[-1])
        return (p_t * ((p_t + EPSILON) / (p_s + EPSILON)).log()).mean()


def neighbourhood(f: Tensor) -> Tensor:
    """[B, D] -> [B, B]: shifted cosines, each row divided by its sum."""
    f = f / (f.norm(dim=1, keepdim=True) + EPSILON)
    p = (f @ f.T + 1) / 2
    return p / p.sum(1, keepdim=True)
