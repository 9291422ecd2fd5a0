"""Variational information distillation (Ahn et al. 2019): the teacher's stages are Gaussian given the student's.

In each stage of feats[1:-1], a regressor of three 1x1 convolutions predicts the mean; each channel's variance is a
parameter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..nn.options import option
from ..ops import checks
from .base import Pair
from .maps import require_same_aspect, same_size, stage_maps
from .weighted_term import WeightedOptions, WeightedTerm


@dataclass
class VIDOptions(WeightedOptions):
    """Options of "vid".

    Attributes:
        weight: weight of the negative log-likelihood.
        initial_variance: variance at the start.
        epsilon: added to the variance.
    """

    weight: float = 1.0
    initial_variance: float = option(5.0, checks.positive)
    epsilon: float = option(1e-5, checks.positive)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.initial_variance <= self.epsilon:
            raise ValueError(
                f"initial_variance: expected more than epsilon = {self.epsilon}, got {self.initial_variance}"
            )


class Likelihood(nn.Module):
    """Mean negative log-likelihood (without its constant) of the teacher's map, given the mean from the student's."""

    def __init__(self, student_channels: int, teacher_channels: int, variance: float, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        widths = (student_channels, teacher_channels, teacher_channels, teacher_channels)
        layers: list[nn.Module] = []
        for i in range(3):
            layers += [nn.Conv2d(widths[i], widths[i + 1], kernel_size=1, bias=False), nn.ReLU()]
        self.regressor = nn.Sequential(*layers[:-1])
        start = variance - epsilon
        raw = start + math.log(-math.expm1(-start))  # softplus(raw) = start; log(expm1(start)) overflows from 710 on
        self.log_scale = nn.Parameter(torch.full((teacher_channels,), raw))

    def forward(self, mean: Tensor, t: Tensor) -> Tensor:
        variance = (F.softplus(self.log_scale) + self.epsilon)[None, :, None, None]
        return 0.5 * ((mean - t).square() / variance + variance.log()).mean()


class VID(WeightedTerm):
    """weight * sum over stages of the negative log-likelihood."""

    term = "likelihood"
    features_used = None

    def __init__(self, pair: Pair, options: VIDOptions) -> None:
        super().__init__(pair, options)
        stages = stage_maps("vid", pair)
        require_same_aspect("vid", stages)
        self.stages = nn.ModuleList(
            Likelihood(s[0], t[0], options.initial_variance, options.epsilon) for s, t in stages
        )

    def compared(self, student: list[Tensor], teacher: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        pairs = [same_size(s, t) for s, t in zip(student[1:-1], teacher[1:-1], strict=True)]
        stages = zip(self.stages, pairs, strict=True)
        means: list[Tensor] = [stage.regressor(s) for stage, (s, _) in stages]  # type: ignore[operator]
        return means, [t for _, t in pairs]

    def distance(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        stages = zip(self.stages, student, teacher, strict=True)
        return torch.stack([stage(mean, t) for stage, mean, t in stages]).sum()
