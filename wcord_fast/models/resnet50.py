"""ResNet-50 for small images (He et al. 2016): bottleneck blocks behind a 3x3 stem of stride 1 without pooling."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .base import FeatureNet, conv3x3, global_pool, init_convolutions

NAMES = ("ResNet50",)
EXPANSION = 4


class Bottleneck(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        out_channels = EXPANSION * channels
        self.conv1 = nn.Conv2d(in_channels, channels, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def pre_activation(self, x: Tensor) -> Tensor:
        """The block's output before its last ReLU."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        return self.bn3(self.conv3(out)).add_(self.shortcut(x))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.pre_activation(x), inplace=True)


class ResNet50(FeatureNet):
    """Four stages of 3, 4, 6, 3 bottlenecks.

    Features: f0 the stem's output, f1 .. f4 the stages' outputs [B, 256 | 512 | 1024 | 2048, ...], f5 [B, 2048].

    Args:
        num_classes: width of the logits.
        in_channels: channels of the images.
    """

    HEAD = "linear"

    def __init__(self, *, num_classes: int = 100, in_channels: int = 3) -> None:
        super().__init__(num_classes, in_channels)
        self.conv1 = conv3x3(in_channels, 64)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 64, 3, stride=1)
        self.layer2 = _stage(256, 128, 4, stride=2)
        self.layer3 = _stage(512, 256, 6, stride=2)
        self.layer4 = _stage(1024, 512, 3, stride=2)
        self.linear = nn.Linear(2048, num_classes)
        init_convolutions(self)

    def features(self, x: Tensor, preact: bool = False) -> list[Tensor]:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        taps = [x]  # f0 [B, 64, H, W]
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            *earlier, last = stage.children()
            for block in earlier:
                x = block(x)
            preact_output = last.pre_activation(x)  # type: ignore[operator]
            x = F.relu(preact_output)
            taps.append(preact_output if preact else x)
        return [*taps, global_pool(x)]


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(in_channels, channels, stride)
    return nn.Sequential(first, *(Bottleneck(EXPANSION * channels, channels) for _ in range(blocks - 1)))


def build(name: str, **options) -> ResNet50 | None:
    """The network called `name` (lower case), or None if it is not one of this family."""
    return ResNet50(**options) if name.replace("_", "") == "resnet50" else None
