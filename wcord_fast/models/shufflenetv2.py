"""ShuffleNetV2 x1 for small images (Ma et al. 2018), 1x1 stem, as in the published distillation recipe."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import FeatureNet, global_pool
from .shufflenetv1 import shuffle

NAMES = ("ShuffleV2",)
STEM = 24
WIDTHS = (116, 232, 464)
BLOCKS = (3, 7, 3)  # in each stage, after the unit that halves the resolution
LAST_CHANNELS = 1024


class BasicUnit(nn.Module):
    """Half of the channels pass unchanged, the other half goes through three convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, kernel_size=3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def with_pre_activation(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The unit's output, and its value before the last ReLU and the shuffle."""
        passed, x = x.chunk(2, 1)
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn3(self.conv3(self.bn2(self.conv2(out))))
        return shuffle(torch.cat([passed, F.relu(out)], 1), 2), torch.cat([passed, out], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.with_pre_activation(x)[0]


class DownUnit(nn.Module):
    """Two branches of stride 2 on all channels, concatenated."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, stride=2, padding=1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = nn.Conv2d(in_channels, half, kernel_size=1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(in_channels, half, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, kernel_size=3, stride=2, padding=1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, kernel_size=1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))), inplace=True)
        right = self.bn4(self.conv4(F.relu(self.bn3(self.conv3(x)), inplace=True)))
        right = F.relu(self.bn5(self.conv5(right)), inplace=True)
        return shuffle(torch.cat([left, right], 1), 2)


class ShuffleNetV2(FeatureNet):
    """ShuffleNetV2 x1.

    Features: f0 the stem's output [B, 24, H, W], f1 .. f3 [B, 116 | 232 | 464, ...], f4 [B, 1024].

    Args:
        num_classes: width of the logits.
        in_channels: channels of the images.
    """

    HEAD = "linear"

    def __init__(self, *, num_classes: int = 100, in_channels: int = 3) -> None:
        super().__init__(num_classes, in_channels)
        self.conv1 = nn.Conv2d(in_channels, STEM, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1 = _stage(STEM, WIDTHS[0], BLOCKS[0])
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], BLOCKS[1])
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], BLOCKS[2])
        self.conv2 = nn.Conv2d(WIDTHS[2], LAST_CHANNELS, kernel_size=1, bias=False)
        self.bn2 = nn.BatchNorm2d(LAST_CHANNELS)
        self.linear = nn.Linear(LAST_CHANNELS, num_classes)

    def features(self, x: Tensor, preact: bool = False) -> list[Tensor]:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        taps = [x]
        for stage in (self.layer1, self.layer2, self.layer3):
            *earlier, last = stage.children()
            for unit in earlier:
                x = unit(x)
            x, preact_output = last.with_pre_activation(x)  # type: ignore[operator]
            taps.append(preact_output if preact else x)
        return [*taps, global_pool(F.relu(self.bn2(self.conv2(x)), inplace=True))]


def _stage(in_channels: int, channels: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(DownUnit(in_channels, channels), *(BasicUnit(channels) for _ in range(blocks)))


def build(name: str, **options) -> ShuffleNetV2 | None:
    """The network called `name` (lower case), or None if it is not one of this family."""
    return ShuffleNetV2(**options) if name.replace("_", "") in ("shufflev2", "shufflenetv2") else None
