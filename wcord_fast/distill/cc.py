"""Correlation congruence (Peng et al. 2019), in the variant of CRD's authors.

A trainable linear maps each penultimate feature to 128 numbers. The loss is sum_d |e_s - e_t|_b,d |e_s - e_t|_b+1,d,
averaged over consecutive images b, b+1 of a batch. The paper compares kernel matrices of the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from ..nn.options import option
from ..ops import checks
from .base import Pair
from .weighted_term import WeightedOptions, WeightedTerm


@dataclass
class CCOptions(WeightedOptions):
    """Options of "cc".

    Attributes:
        weight: weight of the correlation loss.
        feat_dim: width of the embeddings.
    """

    weight: float = 0.02
    feat_dim: int = option(128, partial(checks.integer, least=1))


class CC(WeightedTerm):
    """weight * mean of products of neighbouring absolute differences; 0 for a batch of one image."""

    term = "correlation"
    features_used = 1

    def __init__(self, pair: Pair, options: CCOptions) -> None:
        super().__init__(pair, options)
        self.embed_s = nn.Linear(pair.student_width, options.feat_dim)
        self.embed_t = nn.Linear(pair.teacher_width, options.feat_dim)

    def compared(self, student: list[Tensor], teacher: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return [self.embed_s(student[-1])], [self.embed_t(teacher[-1])]

    def distance(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        delta = (student[0] - teacher[0]).abs()  # [B, D]
        return (delta[:-1] * delta[1:]).sum() / max(1, len(delta) - 1)
