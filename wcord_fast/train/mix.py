"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) of a training batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..batch import Batch


class Blend(NamedTuple):
    """The second labels of a mixed batch.

    labels: int64 [B].
    fraction: of the second image, at most a half: the cross entropy with its label has this weight.
    """

    labels: Tensor
    fraction: float


def mix(batch: Batch, mixup: float, cutmix: float) -> tuple[Batch, Blend]:
    """Every image of the batch mixed with another one of it.

    Each image keeps the larger share, so that its row in the bank stays its own. Teacher and student see the same mixed
    images. The draws come from torch's CPU generator, which checkpoints keep.

    Args:
        batch: images [B, C, H, W]; left as it is.
        mixup, cutmix: both parameters of the Beta distribution of the share; 0: not this one. If both are above 0, one
            of them is drawn for each batch.
    """
    cut = cutmix > 0 and (mixup == 0 or bool(torch.rand(()) < 0.5))
    alpha = cutmix if cut else mixup
    gamma = torch._standard_gamma(torch.full((2,), alpha, dtype=torch.float64))
    drawn = float(gamma[0] / gamma.sum()) if float(gamma.sum()) > 0 else 0.0  # tiny alpha: both may underflow
    fraction = min(drawn, 1 - drawn)
    order = torch.randperm(len(batch.images)).to(batch.images.device, non_blocking=True)
    other = batch.images[order]
    if cut:
        images, fraction = _pasted(batch.images, other, fraction)
    else:
        images = torch.lerp(batch.images, other, fraction)
    return batch._replace(images=images), Blend(batch.labels[order], fraction)


def _pasted(images: Tensor, other: Tensor, fraction: float) -> tuple[Tensor, float]:
    """A box of `other` pasted into `images`, and the share of the pixels that it has."""
    height, width = images.shape[-2:]
    side = fraction**0.5
    tall, wide = int(height * side), int(width * side)  # at most the share that was drawn
    top, left = (int(torch.randint(total - part + 1, ())) for total, part in ((height, tall), (width, wide)))
    images = images.clone()
    images[..., top : top + tall, left : left + wide] = other[..., top : top + tall, left : left + wide]
    return images, tall * wide / (height * width)
