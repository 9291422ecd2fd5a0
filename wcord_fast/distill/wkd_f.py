"""WKD-F: Wasserstein distance of Gaussians between feature maps (Lv, Yang, Li: NeurIPS 2024, section 2.2).

The positions of one image's map [C, H, W], feats[-2] by default, are samples of a Gaussian with mean mu [C] and
covariance S. A convolution (`ConvRegressor`) brings the student's map to the teacher's shape. The distance is

    mean_ratio * |mu_s - mu_t|^2 + D,    D = |sd_s - sd_t|^2 (diagonal covariance, sd = sqrt(var + 1e-5)), or
                                         D = tr S_s + tr S_t - 2 tr (S_s^1/2 S_t S_s^1/2)^1/2 (full covariance),

averaged over images and the cells of a `grid` on the maps. With A and B [C, n] the centred
positions over sqrt(n - 1), the last trace is the nuclear norm of A'B. The objective is CE + weight * distance; from 150
of 240 epochs on, `weight` falls to 0 along half a cosine.

Defaults are the public configuration for resnet32x4-resnet8x4 on CIFAR-100. The public code has the diagonal only, and
changes the weight once per epoch (here in each batch).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ..nn.options import option
from ..ops import checks
from .base import Batch, Loss, Outputs, Pair
from .maps import require_maps
from .regressor import ConvRegressor
from .schedule import CosineDecay
from .weighted_term import WeightedOptions, WeightedTerm

VARIANCE = 1e-5  # added to a variance before its root is taken


@dataclass
class WKDFOptions(WeightedOptions):
    """Options of "wkd_f".

    Attributes:
        weight: weight of the distance.
        covariance: covariance matrices of the Gaussians.
        mean_ratio: weight of the means in the distance.
        grid: the maps are cut into grid x grid cells, each with Gaussians of its own.
        layer: number of the feature that is compared, counted from the end, the penultimate vector being 1.
        decay: fraction of the epochs after which the weight falls to 0; 1: never.
    """

    weight: float = 0.08
    covariance: Literal["diagonal", "full"] = "diagonal"
    mean_ratio: float = option(4.0, checks.non_negative)
    grid: int = option(1, partial(checks.integer, least=1))
    layer: int = option(2, partial(checks.integer, least=2))
    decay: float = option(150 / 240, checks.fraction)


class WKDF(WeightedTerm):
    """CE + weight * distance of Gaussians."""

    options: WKDFOptions
    term = "gaussian"

    def __init__(self, pair: Pair, options: WKDFOptions) -> None:
        super().__init__(pair, options)
        shared = min(len(pair.student_shapes), len(pair.teacher_shapes))
        if options.layer > shared:
            raise ValueError(f"layer: expected a feature that both networks have, 2 .. {shared}, got {options.layer}")
        shapes = (pair.student_shapes[-options.layer], pair.teacher_shapes[-options.layer])
        require_maps("wkd_f", shapes)
        height, width = shapes[1][1:]
        if -(-height // options.grid) * -(-width // options.grid) < 2:
            raise ValueError(
                f"wkd_f: a variance needs two positions in each of {options.grid} x {options.grid} cells, but the "
                f"teacher's map is {list(shapes[1])}"
            )
        try:
            self.regressor = ConvRegressor(*shapes)
        except ValueError as error:
            raise ValueError(f"wkd_f: {error}") from None
        self.features_used = options.layer
        self.decay = CosineDecay(options.decay)
        self.scheduled = options.decay < 1

    def at_step(self, done: int, per_epoch: int, epochs: int) -> None:
        self.decay.at_step(done, per_epoch, epochs)

    def own_loss(self, student: Outputs, teacher: Outputs, batch: Batch) -> Loss:
        value, terms = super().own_loss(student, teacher, batch)
        return Loss(self.decay.factor * value, terms)

    def compared(self, student: list[Tensor], teacher: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        layer = self.options.layer
        return [self.regressor(student[-layer])], [teacher[-layer]]

    def distance(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        options = self.options
        (s,), (t,) = student, teacher
        measure = diagonal_distance if options.covariance == "diagonal" else full_distance
        pairs = zip(cells(s, options.grid), cells(t.to(s.dtype), options.grid), strict=True)
        return torch.stack([measure(a, b, options.mean_ratio).mean() for a, b in pairs]).mean()


def cells(maps: Tensor, grid: int) -> list[Tensor]:
    """The positions [B, C, n] in every cell of maps [B, C, H, W], cut as in adaptive pooling."""
    rows, columns = ([(i * n // grid, -(-(i + 1) * n // grid)) for i in range(grid)] for n in maps.shape[2:])
    return [maps[:, :, r0:r1, c0:c1].flatten(2) for r0, r1 in rows for c0, c1 in columns]


def diagonal_distance(s: Tensor, t: Tensor, mean_ratio: float) -> Tensor:
    """Distances [B] between Gaussians with diagonal covariances, from positions [B, C, n]."""
    sd_s, sd_t = ((x.var(2) + VARIANCE).sqrt() for x in (s, t))
    return mean_ratio * (s.mean(2) - t.mean(2)).square().sum(1) + (sd_s - sd_t).square().sum(1)


def full_distance(s: Tensor, t: Tensor, mean_ratio: float) -> Tensor:
    """Distances [B] between Gaussians with full covariances, from positions [B, C, n]; no covariance matrix is made."""
    mean_s, mean_t = s.mean(2, keepdim=True), t.mean(2, keepdim=True)
    scale = (s.shape[2] - 1) ** -0.5
    a, b = (s - mean_s) * scale, (t - mean_t) * scale
    spread = a.square().sum((1, 2)) + b.square().sum((1, 2))
    return mean_ratio * (mean_s - mean_t).square().sum((1, 2)) + spread - 2 * _nuclear(a, b)


def _nuclear(a: Tensor, b: Tensor) -> Tensor:
    """Nuclear norm [B] of a'b for a, b [B, C, n], as <a'b, W> with a fixed maximiser W, which gives the gradient."""
    with torch.no_grad():
        q_a, r_a = torch.linalg.qr(a.mT)  # [B, n, k], [B, k, C], k = min(n, C)
        q_b, r_b = torch.linalg.qr(b.mT)
        u, sigma, v = torch.linalg.svd(r_a @ r_b.mT)
        small = sigma.amax(1, keepdim=True) * (sigma.shape[1] * torch.finfo(a.dtype).eps)
        w = q_a @ ((u * (sigma > small).unsqueeze(1)) @ v) @ q_b.mT  # null directions are left out
    return ((a @ w) * b).sum((1, 2))
