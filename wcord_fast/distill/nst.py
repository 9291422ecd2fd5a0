"""Neuron selectivity transfer (Huang and Wang 2017): squared maximum mean discrepancy between the stages' channels.

Every channel's map is L2-normalised over the image. The kernel (a . b)^2 is averaged over all pairs of channels, and
the stages feats[1:-1] are summed. The teacher's own term is a constant.

Channels need not be compared in pairs: with the Gram matrix of positions G = F' F / C [HW, HW], the mean of the kernel
over channels i of one network and j of another is <G, G'>, so the discrepancy is || G_s - G_t ||^2. Where there are
fewer channels than positions, the three means are taken from C x C products instead.
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
class NSTOptions(WeightedOptions):
    """Options of "nst".

    Attributes:
        weight: weight of the discrepancy.
    """

    weight: float = 50.0


class NST(WeightedTerm):
    """weight * sum over stages of the discrepancy."""

    term = "selectivity"
    features_used = None

    def __init__(self, pair: Pair, options: NSTOptions) -> None:
        super().__init__(pair, options)
        require_same_aspect("nst", stage_maps("nst", pair))

    def compared(self, student: list[Tensor], teacher: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return student[1:-1], teacher[1:-1]

    def distance(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        return torch.stack([discrepancy(*same_size(s, t)) for s, t in zip(student, teacher, strict=True)]).sum()


def discrepancy(s: Tensor, t: Tensor) -> Tensor:
    """Mean over the batch of the discrepancy of maps s [B, C_s, H, W] and t [B, C_t, H, W]."""
    s, t = (F.normalize(f.flatten(2), dim=2) for f in (s, t))
    (c_s, positions), c_t = s.shape[1:], t.shape[1]
    if positions * (c_s + c_t) <= c_s * c_s + c_s * c_t + c_t * c_t:
        gram = s.mT @ s / c_s - t.mT @ t / c_t  # [B, HW, HW]
        return gram.square().sum() / len(s)
    return _kernel(s, s) - 2 * _kernel(s, t) + _kernel(t, t).detach()


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """Mean of (a_i . b_j)^2 over images and pairs of channels."""
    return (a @ b.mT).square().mean()
