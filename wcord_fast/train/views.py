"""Views: teacher and student each get their own part of a batch's images.

A view maps pixels scaled to [0, 1], float [B, C, H, W], to a network's input, [B, channels, ...].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data import Dataset
from ..ops import checks


@dataclass(frozen=True)
class View:
    """The part of an image that a network gets.

    Attributes:
        name: its name, with its parameters; views of one name are equal.
        channels: channels of its output.
        see: the mapping.
        mean, std: per channel, by which it normalises pixels in [0, 1]; None: its output is not normalised pixels.
    """

    name: str
    channels: int
    see: Callable[[Tensor], Tensor]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def look_through(network: nn.Module, view: View) -> nn.Module:
    """`network`, which gets `view` of its images from now on; its state dict and modules do not change."""
    network.register_forward_pre_hook(lambda _module, inputs: (view.see(inputs[0]), *inputs[1:]))
    return network


def unscaled(data: Dataset) -> Dataset:
    """`data` with batches in [0, 1], as views take them; each view does its own scaling."""
    return replace(data, mean=(0.0,) * data.channels, std=(1.0,) * data.channels)


def resized(size: int, data: Dataset, least: int) -> View:
    """Images at `size` x `size` pixels (bilinear with antialiasing), scaled by the mean and deviation of `data`.

    Args:
        size: height and width of the resized image.
        data: the data set whose channel statistics are used.
        least: the network's least input size; the pixels of a smaller image are repeated.
    """
    checks.integer("size", size, least=1)
    repeat = math.ceil(least / size)
    mean, std = data.mean, data.std

    def see(images: Tensor) -> Tensor:
        if images.shape[-2:] != (size, size):
            images = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
        images = torch.stack([(c - m) / s for c, m, s in zip(images.unbind(1), mean, std, strict=True)], 1)
        return images.repeat_interleave(repeat, 2).repeat_interleave(repeat, 3) if repeat > 1 else images

    return View(f"{size}x{size} pixels", data.channels, see, mean, std)


def luminance() -> View:
    """L of CIE Lab, scaled to [-1, 1]."""
    return View("luminance", 1, lambda images: lab(images)[:, :1] / 50 - 1, (0.5,), (0.5,))


def chrominance() -> View:
    """a and b of CIE Lab, each scaled so that the colours of sRGB fill [-1, 1]."""

    def see(images: Tensor) -> Tensor:
        _, a, b = lab(images).unbind(1)
        return torch.stack([(a - 6.02) / 92.21, (b + 6.69) / 101.17], 1)

    return View("chrominance", 2, see)


def coarse(factor: int) -> View:
    """Grey images as means over squares of `factor` pixels per side: the first modality of grey images."""
    return View(f"means of {factor}x{factor} pixels", 1, lambda images: 4 * _means(images, factor) - 1)


def detail(factor: int) -> View:
    """Grey images minus those means: the second modality. Both sum to the image, scaled to [-1, 1]."""
    return View(
        f"differences from means of {factor}x{factor} pixels", 1, lambda images: 4 * (images - _means(images, factor))
    )


def lab(images: Tensor) -> Tensor:
    """CIE Lab [B, 3, H, W] (L 0 .. 100) of sRGB images in [0, 1], white point D65."""
    linear = torch.where(images <= 0.04045, images / 12.92, ((images + 0.055) / 1.055).clamp_min(0) ** 2.4)
    r, g, b = linear.unbind(1)
    x = (0.4124564 * r + 0.3575761 * g + 0.1804375 * b) / 0.95047
    y = 0.2126729 * r + 0.7151522 * g + 0.0721750 * b
    z = (0.0193339 * r + 0.1191920 * g + 0.9503041 * b) / 1.08883
    fx, fy, fz = (_lightness(t) for t in (x, y, z))
    return torch.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], 1)


def _lightness(t: Tensor) -> Tensor:
    knee = 6 / 29
    return torch.where(t > knee**3, t.clamp_min(knee**3) ** (1 / 3), t / (3 * knee**2) + 4 / 29)


def _means(images: Tensor, factor: int) -> Tensor:
    height, width = images.shape[-2:]
    small = F.avg_pool2d(images, factor, ceil_mode=True)
    return small.repeat_interleave(factor, 2)[:, :, :height].repeat_interleave(factor, 3)[:, :, :, :width]
