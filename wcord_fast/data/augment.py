"""Augmentation of a whole batch on its device: one gather crops and mirrors all images.

The order is that of the published recipe: pad the raw image with black, crop, mirror, normalise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import checks


def crop_flip(images: Tensor, index: Tensor, shift: Tensor, mirror: Tensor | None = None) -> Tensor:
    """Images `index`, each shifted with zeros beyond its edges, then mirrored left-right.

    Result b is image index[b], padded by p with zeros, cropped to H x W at row p + shift[b, 0] and column
    p + shift[b, 1], and mirrored if mirror[b].

    Args:
        images: any dtype [N, C, H, W].
        index: int64 [B], rows of `images`.
        shift: int64 [B, 2], pixels down and right.
        mirror: bool [B]; None mirrors no image.

    Returns:
        [B, C, H, W] in the dtype of `images`, in the channels_last memory format, in which the gather writes.
    """
    height, width = images.shape[-2:]
    y = torch.arange(height, device=images.device) + shift[:, :1]  # [B, H]
    x = torch.arange(width, device=images.device)  # [W]
    if mirror is not None:
        x = torch.where(mirror[:, None], width - 1 - x, x)  # [B, W]
    x = x + shift[:, 1:]  # [B, W]
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]  # [B, H, W]
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    # Index tensors on both sides of the channel slice: the result is [B, H, W, C].
    picked = images[index[:, None, None], :, y[:, :, None], x[:, None, :]]
    return (picked * inside[..., None]).permute(0, 3, 1, 2)


class Normalise:
    """uint8 [B, C, H, W] -> (pixels / 255 - mean) / std, computed in float32 (float64 for float64).

    Args:
        mean, std: one number per channel, for pixels scaled to [0, 1].
        dtype: floating dtype of the result.
        channels_last: whether the result has the channels_last memory format.
        device: device of the images.
    """

    def __init__(
        self,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        dtype: torch.dtype,
        channels_last: bool,
        device: torch.device,
    ) -> None:
        self.dtype = checks.choice("dtype", dtype, checks.FLOATS)
        self.format = torch.channels_last if checks.boolean("channels_last", channels_last) else torch.contiguous_format
        compute_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        m, s = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        self.scale = (1 / (255 * s)).to(device, compute_dtype)[:, None, None]  # [C, 1, 1]
        self.offset = (-m / s).to(device, compute_dtype)[:, None, None]  # [C, 1, 1]

    def __call__(self, images: Tensor) -> Tensor:
        out = images.to(self.scale.dtype, memory_format=self.format)
        return out.mul_(self.scale).add_(self.offset).to(self.dtype)
