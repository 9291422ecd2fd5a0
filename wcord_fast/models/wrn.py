"""Wide ResNets (Zagoruyko and Komodakis 2016): pre-activation blocks, depth 6n+4, width factor w.

A 3x3 stem of 16 channels, three stages of n blocks with 16w, 32w, 64w channels, batch norm and ReLU, global
pooling, one linear.
"""

from __future__ import annotations

import re

from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import checks
from .base import FeatureNet, conv3x3, global_pool, init_convolutions

NAMES = ("wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2")


class WideBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.dropout = dropout
        # This attribute's spelling is part of the published state-dict keys.
        self.convShortcut: nn.Module | None = None
        if in_channels != channels:
            self.convShortcut = nn.Conv2d(in_channels, channels, kernel_size=1, stride=stride, bias=False)

    def forward(self, x: Tensor, normed: Tensor | None = None) -> Tensor:
        """x [B, C, H, W]; `normed`: bn1(x), if the caller has it (a second call would count twice in bn1)."""
        act = F.relu(self.bn1(x), inplace=True) if normed is None else F.relu(normed)
        out = F.relu(self.bn2(self.conv1(act)), inplace=True)
        if self.dropout > 0:
            out = F.dropout(out, p=self.dropout, training=self.training)
        out = self.conv2(out)
        return out.add_(x if self.convShortcut is None else self.convShortcut(act))


class WideStage(nn.Module):
    def __init__(self, in_channels: int, channels: int, blocks: int, stride: int, dropout: float) -> None:
        super().__init__()
        first = WideBlock(in_channels, channels, stride, dropout)
        rest = (WideBlock(channels, channels, 1, dropout) for _ in range(blocks - 1))
        self.layer = nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def with_normed_input(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The stage's output, and its input after the first batch norm: the previous pre-activation."""
        first, *rest = self.layer.children()
        normed = first.bn1(x)  # type: ignore[operator]
        x = first(x, normed)
        for block in rest:
            x = block(x)
        return x, normed


class WideResNet(FeatureNet):
    """A wide ResNet WRN-`depth`-`width`.

    Features: f0 the stem's output, f1, f2, f3 the stages' outputs (raw sums; with `preact=True` after the
    batch norm that follows them), f4 [B, 64 * width].

    Args:
        depth: 6n+4.
        width: factor on the channels 16, 32, 64 of the three stages.
        num_classes: width of the logits.
        in_channels: channels of the images.
        dropout: dropout between the two convolutions of a block, in [0, 1].
    """

    def __init__(
        self,
        depth: int,
        width: int = 1,
        *,
        num_classes: int = 100,
        in_channels: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_classes, in_channels)
        checks.integer("width", width, least=1)
        checks.fraction("dropout", dropout)
        depth = checks.integer("depth", depth, least=1)
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth: expected 6n+4 with n at least 1 (10, 16, 22, 28, ...), got {depth}")
        blocks = (depth - 4) // 6
        c0, c1, c2, c3 = 16, 16 * width, 32 * width, 64 * width
        self.conv1 = conv3x3(in_channels, c0)
        self.block1 = WideStage(c0, c1, blocks, 1, dropout)
        self.block2 = WideStage(c1, c2, blocks, 2, dropout)
        self.block3 = WideStage(c2, c3, blocks, 2, dropout)
        self.bn1 = nn.BatchNorm2d(c3)
        self.fc = nn.Linear(c3, num_classes)
        init_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    def features(self, x: Tensor, preact: bool = False) -> list[Tensor]:
        f0 = self.conv1(x)  # [B, 16, H, W]
        f1 = self.block1(f0)  # [B, 16w, H, W]
        if preact:
            f2, p1 = self.block2.with_normed_input(f1)
            f3, p2 = self.block3.with_normed_input(f2)
            p3 = self.bn1(f3)
            return [f0, p1, p2, p3, global_pool(F.relu(p3))]
        f2 = self.block2(f1)  # [B, 32w, H/2, W/2]
        f3 = self.block3(f2)  # [B, 64w, H/4, W/4]
        return [f0, f1, f2, f3, global_pool(F.relu(self.bn1(f3), inplace=True))]


def build(name: str, **options) -> WideResNet | None:
    """The network called `name` (lower case, `_` as separator), or None if it is not one of this family."""
    match = re.fullmatch(r"wrn_?(\d+)_(\d+)", name)
    return None if match is None else WideResNet(int(match[1]), int(match[2]), **options)
