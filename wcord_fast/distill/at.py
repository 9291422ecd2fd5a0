"""Attention transfer (Zagoruyko and Komodakis 2017): each stage's attention is its map of mean squared activation.

As in the public code, squares are averaged over channels, and the map is flattened and L2-normalised. The squared
difference is *averaged* over the map (the paper takes the norm) and summed over the stages feats[1:-1].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Pair
from .maps import require_same_aspect, same_size, stage_maps
from .weighted_term import WeightedOptions, WeightedTerm


@dataclass
class ATOptions(WeightedOptions):
    """Options of "at".

    Attributes:
        weight: weight of the attention loss.
    """

    weight: float = 1000.0


class AT(WeightedTerm):
    """weight * sum over stages of the mean squared difference of normalised attention maps."""

    term = "attention"
    features_used = None

    def __init__(self, pair: Pair, options: ATOptions) -> None:
        super().__init__(pair, options)
        require_same_aspect("at", stage_maps("at", pair))

    def compared(self, student: list[Tensor], teacher: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return student[1:-1], teacher[1:-1]

    def distance(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        pairs = (same_size(s, t) for s, t in zip(student, teacher, strict=True))
        return torch.stack([F.mse_loss(attention(s), attention(t)) for s, t in pairs]).sum()


def attention(f: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H * W]: attention maps as unit rows."""
    return F.normalize(f.square().mean(1).flatten(1))
