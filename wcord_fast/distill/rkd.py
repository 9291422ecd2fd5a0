"""Relational knowledge distillation (Park et al. 2019): distances and angles between the images of a batch.

The loss on the penultimate features is 25 * smooth L1 of the pairwise distances, divided by their mean, + 50 * smooth
L1 of the cosines of the angles at image i between images j and k.

The public code holds the [B, B, D] differences and the [B, B, B] cosines of both networks, and autograd's copies. Here
the angles are taken a few vertices i at a time, value and gradient together, so memory is O(B * max(B, D)).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..nn.options import option
from ..ops import checks
from ..ops.differentiable_once import differentiable_once, graph_handle
from .base import Pair
from .weighted_term import WeightedOptions, WeightedTerm

CHUNK_ELEMENTS = 1 << 22  # elements of [i, B, max(B, D)] at a time
CHUNK_ON_CPU = 1 << 19  # 2 MB stay in the cache (B = D = 256: a fifth less time, a fifth of the memory)
LEAST_SQUARE = 1e-12  # least squared distance, as in the public code


@dataclass
class RKDOptions(WeightedOptions):
    """Options of "rkd".

    Attributes:
        weight: weight of the relational loss.
        distance_weight: weight of the distances in it.
        angle_weight: weight of the angles in it.
    """

    distance_weight: float = option(25.0, checks.non_negative)
    angle_weight: float = option(50.0, checks.non_negative)


class RKD(WeightedTerm):
    """weight * (distance_weight * distances + angle_weight * angles)."""

    term = "relation"
    features_used = 1

    def __init__(self, pair: Pair, options: RKDOptions) -> None:
        super().__init__(pair, options)
        _ = pair.student_width, pair.teacher_width  # both must end with a vector
        self.weights = (options.distance_weight, options.angle_weight)

    def compared(self, student: list[Tensor], teacher: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return student[-1:], teacher[-1:]

    def distance(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        s, t = student[-1], teacher[-1]
        distances = F.smooth_l1_loss(relative_distances(s), relative_distances(t))
        angles: Tensor = _AngleLoss.apply(s, t, graph_handle(s))  # type: ignore[no-untyped-call]
        return self.weights[0] * distances + self.weights[1] * angles


def relative_distances(f: Tensor) -> Tensor:
    """[B, D] -> [B, B]: distances, divided by the mean of those that are not zero."""
    square = f.square().sum(1)
    d = (square[:, None] + square[None] - 2 * f @ f.T).clamp_min(LEAST_SQUARE).sqrt()
    d = d.masked_fill(torch.eye(len(f), dtype=torch.bool, device=f.device), 0)
    mean = d.sum() / (d > 0).sum().clamp_min(1)
    return d / mean.clamp_min(torch.finfo(d.dtype).tiny)  # a single image has no distance


class _AngleLoss(torch.autograd.Function):
    """Mean smooth L1 distance between the cosines of s [B, D] and t [B, D'] at every vertex i, for every j and k."""

    @staticmethod
    def forward(ctx, s, t, handle):
        batch = len(s)
        total = s.new_zeros(())
        grad = torch.zeros_like(s)
        elements = min(CHUNK_ELEMENTS, CHUNK_ON_CPU) if s.device.type == "cpu" else CHUNK_ELEMENTS
        step = max(1, elements // (batch * max(batch, s.shape[1], t.shape[1])))
        for start in range(0, batch, step):
            vertices = slice(start, start + step)
            norm, n_s = _unit_vectors(s, vertices)  # [i, B, 1], [i, B, D]
            n_t = _unit_vectors(t, vertices)[1]
            gap = n_s @ n_s.mT - n_t @ n_t.mT  # [i, B, B]
            small = gap.abs() < 1
            total += torch.where(small, 0.5 * gap.square(), gap.abs() - 0.5).sum()
            if ctx.needs_input_grad[0]:
                slope = torch.where(small, gap, gap.sign())
                d_n = 2 * slope @ n_s  # slope is symmetric in j, k
                d_e = (d_n - n_s * (n_s * d_n).sum(2, keepdim=True)) / norm  # back through the normalisation
                grad += d_e.sum(0)
                grad[vertices] -= d_e.sum(1)
        count = batch**3
        ctx.save_for_backward(grad / count, handle)
        return total / count

    @staticmethod
    def backward(ctx, grad_output):
        grad, handle = ctx.saved_tensors
        message = "the gradient of rkd's angles cannot be differentiated again: only the first one is computed"
        return differentiable_once([grad_output * grad], message, grad_output, handle)[0], None, None


def _unit_vectors(f: Tensor, vertices: slice) -> tuple[Tensor, Tensor]:
    """Lengths [i, B, 1] and unit vectors [i, B, D] from each vertex to every image; a zero vector stays zero."""
    difference = f[None] - f[vertices, None]
    norm = difference.norm(dim=2, keepdim=True).clamp_min(1e-12)
    return norm, difference / norm
