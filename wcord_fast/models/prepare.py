"""Images as one program normalises them, as a network of another wants them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation


class Prepare(nn.Module):
    """Scales, resizes and colours a batch of images for a network of three channels. It has no parameters.

    Args:
        mean, std: per channel, by which the network wants pixels in [0, 1] normalised.
        size: height and width that the network sees; None: the images' own, but at least `least`.
        least: smaller images are enlarged to this height and width.
        channels: of the images: 3, or 1 (grey, which becomes three equal channels).
        given_mean, given_std: per channel, by which the images are normalised already; None: as the network wants.
    Raises:
        ValueError: other channels; statistics of another number of channels.
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
        if channels not in (1, 3):
            raise ValueError(f"in_channels: expected 3, or 1 for grey images, got {channels}")
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        self.size, self.least, self.channels = size, least, channels
        wanted = [torch.tensor(values, dtype=torch.float64) for values in (self.mean, self.std)]
        given = wanted
        if given_mean is not None and given_std is not None:
            if len(given_mean) != channels or len(given_std) != channels:
                raise ValueError(f"mean, std: expected {channels} numbers each, got {given_mean} and {given_std}")
            given = [torch.tensor(values, dtype=torch.float64) for values in (given_mean, given_std)]
        scale, shift = given[1] / wanted[1], (given[0] - wanted[0]) / wanted[1]
        self.same = given is wanted
        self.register_buffer("scale", scale.float()[:, None, None], persistent=False)
        self.register_buffer("shift", shift.float()[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, size, size] of images [B, channels, H, W]."""
        height, width = images.shape[-2:]
        size = (self.size, self.size) if self.size else (max(height, self.least), max(width, self.least))
        if size != (height, width):
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)
        if self.channels == 1:
            images = images.expand(-1, 3, -1, -1)
        return images if self.same else images * self.scale + self.shift

    def extra_repr(self) -> str:
        return f"mean={self.mean}, std={self.std}, size={self.size}, channels={self.channels}"
