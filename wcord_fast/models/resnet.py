"""ResNets for small images (He et al. 2016, section 4.2) in the widths of the published distillation recipe.

Depth 6n+2: a 3x3 stem, three stages of n basic blocks at full, half and quarter resolution, global pooling,
one linear. Shortcuts that change shape are a 1x1 convolution with batch norm. The x4 networks have a stem of
32 channels, not 64.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import checks
from .base import FeatureNet, conv3x3, global_pool, init_convolutions

PLAIN = (16, 16, 32, 64)  # stem and the three stages
X4 = (32, 64, 128, 256)
NAMES = (*(f"resnet{depth}" for depth in (8, 14, 20, 32, 44, 56, 110)), "resnet8x4", "resnet32x4")


class BasicBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, kernel_size=1, stride=stride, bias=False),
                nn.BatchNorm2d(channels),
            )

    def pre_activation(self, x: Tensor) -> Tensor:
        """The block's output before its last ReLU."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return out.add_(x if self.downsample is None else self.downsample(x))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.pre_activation(x), inplace=True)


class ResNet(FeatureNet):
    """A CIFAR ResNet of `depth` = 6n+2 layers.

    Features: f0 the stem's output, f1, f2, f3 the stages' outputs, f4 [B, widths[3]].

    Args:
        depth: number of weighted layers, 6n+2.
        widths: channels of the stem and of the three stages.
        num_classes: width of the logits.
        in_channels: channels of the images.
    """

    def __init__(
        self,
        depth: int,
        widths: tuple[int, int, int, int] = PLAIN,
        *,
        num_classes: int = 100,
        in_channels: int = 3,
    ) -> None:
        super().__init__(num_classes, in_channels)
        depth = checks.integer("depth", depth, least=1)
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth: expected 6n+2 with n at least 1 (8, 14, 20, ...), got {depth}")
        if not isinstance(widths, Sequence) or len(widths) != len(PLAIN):
            raise ValueError(f"widths: expected the channels of the stem and of three stages, got {widths!r}")
        for width in widths:
            checks.integer("widths", width, least=1)
        blocks = (depth - 2) // 6
        self.conv1 = conv3x3(in_channels, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(widths[0], widths[1], blocks, stride=1)
        self.layer2 = _stage(widths[1], widths[2], blocks, stride=2)
        self.layer3 = _stage(widths[2], widths[3], blocks, stride=2)
        self.fc = nn.Linear(widths[3], num_classes)
        init_convolutions(self)

    def features(self, x: Tensor, preact: bool = False) -> list[Tensor]:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        taps = [x]  # f0 [B, widths[0], H, W]
        for stage in (self.layer1, self.layer2, self.layer3):
            if preact:
                *earlier, last = stage.children()
                for block in earlier:
                    x = block(x)
                tap = last.pre_activation(x)  # type: ignore[operator]
                x = F.relu(tap)
            else:
                x = tap = stage(x)
            taps.append(tap)  # f1, f2, f3 [B, widths[i], H / 2^(i-1), W / 2^(i-1)]
        return [*taps, global_pool(x)]


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels) for _ in range(blocks - 1)))


def build(name: str, **options) -> ResNet | None:
    """The network called `name` (lower case, `_` as separator), or None if it is not one of this family."""
    match = re.fullmatch(r"resnet_?(\d+)(x4)?", name)
    if match is None or name.replace("_", "") not in NAMES:
        return None
    return ResNet(int(match[1]), X4 if match[2] else PLAIN, **options)
