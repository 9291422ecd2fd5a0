"""ShuffleNetV1 for small images (Zhang et al. 2018), 3 groups, 1x1 stem, as in the published distillation recipe."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import FeatureNet, global_pool

NAMES = ("ShuffleV1",)
GROUPS = 3
STEM = 24
WIDTHS = (240, 480, 960)
BLOCKS = (4, 8, 4)


class ShuffleUnit(nn.Module):
    """At stride 2 the pooled input is concatenated, not added; `channels` then does not count its channels."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        narrow = channels // 4
        self.stride = stride
        self.groups = 1 if in_channels == STEM else GROUPS
        self.conv1 = nn.Conv2d(in_channels, narrow, kernel_size=1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(narrow)
        self.conv2 = nn.Conv2d(narrow, narrow, kernel_size=3, stride=stride, padding=1, groups=narrow, bias=False)
        self.bn2 = nn.BatchNorm2d(narrow)
        self.conv3 = nn.Conv2d(narrow, channels, kernel_size=1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)

    def pre_activation(self, x: Tensor) -> Tensor:
        """The unit's output before its last ReLU."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(shuffle(out, self.groups))), inplace=True)
        out = self.bn3(self.conv3(out))
        if self.stride == 2:
            return torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], 1)
        return out + x

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.pre_activation(x), inplace=True)


class ShuffleNetV1(FeatureNet):
    """ShuffleNetV1 with 3 groups.

    Features: f0 the stem's output [B, 24, H, W], f1 .. f3 [B, 240 | 480 | 960, ...], f4 [B, 960].

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
        self.linear = nn.Linear(WIDTHS[2], num_classes)

    def features(self, x: Tensor, preact: bool = False) -> list[Tensor]:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        taps = [x]
        for stage in (self.layer1, self.layer2, self.layer3):
            *earlier, last = stage.children()
            for unit in earlier:
                x = unit(x)
            preact_output = last.pre_activation(x)  # type: ignore[operator]
            x = F.relu(preact_output)
            taps.append(preact_output if preact else x)
        return [*taps, global_pool(x)]


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Channels [g, C/g] read as [C/g, g], so that the next grouped convolution sees all groups."""
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w) if groups > 1 else x


def _stage(in_channels: int, channels: int, blocks: int) -> nn.Sequential:
    first = ShuffleUnit(in_channels, channels - in_channels, stride=2)
    return nn.Sequential(first, *(ShuffleUnit(channels, channels, stride=1) for _ in range(blocks - 1)))


def build(name: str, **options) -> ShuffleNetV1 | None:
    """The network called `name` (lower case), or None if it is not one of this family."""
    return ShuffleNetV1(**options) if name.replace("_", "") in ("shufflev1", "shufflenetv1") else None
