"""Conversion of images from one program's normalisation to that of another program's network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import checks

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation


class Prepare(nn.Module):
    """Normalises and resizes a batch of images for a network of three channels. It has no parameters.

    Args:
        mean, std: the network's normalisation per channel, for pixels in [0, 1].
        size: height and width of the network's input; None: the images' own, but at least `least`.
        least: smaller images are enlarged to this height and width.
        channels: channels of the images: 3, or 1 (grey, which becomes three equal channels).
        given_mean, given_std: the normalisation that the images have already; None: the network's.
    Raises:
        ValueError: another number of channels, in the images or in given_mean and given_std; one of these two alone;
            a mean that is not finite, a standard deviation that is not positive.
    """

    scale: Tensor  # float32 [1 or 3, 1, 1]
    shift: Tensor

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        size: int | None,
        least: int,
        channels: int,
        given_mean: Sequence[float] | None = None,
        given_std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if checks.integer("in_channels", channels, least=1) not in (1, 3):
            raise ValueError(f"in_channels: expected 3, or 1 for grey images, got {channels}")
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        self.size, self.least, self.channels = size, least, channels
        target = [torch.tensor(values, dtype=torch.float64) for values in (self.mean, self.std)]
        given = target
        if (given_mean is None) != (given_std is None):
            raise ValueError(f"mean, std: expected both or neither, got {given_mean} and {given_std}")
        if given_mean is not None and given_std is not None:
            given = [
                _per_channel("mean", given_mean, channels, partial(checks.finite, dtype=torch.float32)),
                _per_channel("std", given_std, channels, checks.positive),
            ]
        scale, shift = given[1] / target[1], (given[0] - target[0]) / target[1]
        self.normalised = given is target
        self.register_buffer("scale", scale.float()[:, None, None], persistent=False)
        self.register_buffer("shift", shift.float()[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, channels, H, W] -> [B, 3, size, size]."""
        height, width = images.shape[-2:]
        size = (self.size, self.size) if self.size else (max(height, self.least), max(width, self.least))
        if size != (height, width):
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)
        if self.channels == 1:
            images = images.expand(-1, 3, -1, -1)
        return images if self.normalised else images * self.scale + self.shift

    def extra_repr(self) -> str:
        return f"mean={self.mean}, std={self.std}, size={self.size}, channels={self.channels}"


def _per_channel(name: str, values: Any, channels: int, check: Callable[[str, Any], float]) -> Tensor:
    """`values`, a number for each channel, in float64."""
    if isinstance(values, str) or not hasattr(values, "__len__") or len(values) != channels:
        raise ValueError(f"{name}: expected {channels} numbers, one per channel, got {values!r}")
    numbers = (value.item() if isinstance(value, Tensor) else value for value in values)
    return torch.tensor([check(name, value) for value in numbers], dtype=torch.float64)
