"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) of a training batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..batch import Batch


class Blend(NamedTuple):
    """The second labels of a mixed batch.

    Attributes:
        labels: int64 [B].
        fraction: of each image, the second one's fraction, at most 1/2; the weight of the cross entropy with its label.
    """

    labels: Tensor
    fraction: float


def mix(batch: Batch, mixup: float, cutmix: float) -> tuple[Batch, Blend]:
    """Mix every image of the batch with another one of the batch.

    Each image keeps the larger fraction, so that its bank row still belongs to it. Teacher and student see equal mixed
    images. The draws come from torch's CPU generator, which checkpoints keep.

    Args:
        batch: images [B, C, H, W]; not changed.
        mixup, cutmix: both parameters of the Beta distribution of the fraction; 0 switches the kind off. If both are
            above 0, one of them is drawn for each batch.
    """
    use_cutmix = cutmix > 0 and (mixup == 0 or bool(torch.rand(()) < 0.5))
    alpha = cutmix if use_cutmix else mixup
    gamma = torch._standard_gamma(torch.full((2,), alpha, dtype=torch.float64))
    drawn = float(gamma[0] / gamma.sum()) if float(gamma.sum()) > 0 else 0.0  # tiny alpha: both may underflow
    fraction = min(drawn, 1 - drawn)
    order = torch.randperm(len(batch.images)).to(batch.images.device, non_blocking=True)
    other = batch.images[order]
    if use_cutmix:
        images, fraction = _pasted(batch.images, other, fraction)
    else:
        images = torch.lerp(batch.images, other, fraction)
    return batch._replace(images=images), Blend(batch.labels[order], fraction)


def _pasted(images: Tensor, other: Tensor, fraction: float) -> tuple[Tensor, float]:
    """`images` with a box of `other` pasted in, and the box's fraction of the pixels."""
    height, width = images.shape[-2:]
    side = fraction**0.5
    box_height, box_width = int(height * side), int(width * side)  # at most the drawn fraction of the pixels
    top, left = (int(torch.randint(total - box + 1, ())) for total, box in ((height, box_height), (width, box_width)))
    images = images.clone()
    images[..., top : top + box_height, left : left + box_width] = other[
        ..., top : top + box_height, left : left + box_width
    ]
    return images, box_height * box_width / (height * width)
