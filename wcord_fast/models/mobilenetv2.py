"""MobileNetV2 for small images (Sandler et al. 2018), half width, as in the published distillation recipe.

The stem has stride 2 and the second group of blocks stride 1, so 32x32 leaves 2x2. Blocks have no activation at their
end, so `preact` changes nothing.
"""

from __future__ import annotations

from torch import Tensor, nn

from .base import FeatureNet, global_pool, init_by_fan_out

NAMES = ("MobileNetV2",)
EXPANSION = 6
WIDTH = 0.5
GROUPS = (  # expansion, channels at full width, blocks, stride of the first
    (1, 16, 1, 1),
    (EXPANSION, 24, 2, 1),
    (EXPANSION, 32, 3, 2),
    (EXPANSION, 64, 4, 2),
    (EXPANSION, 96, 3, 1),
    (EXPANSION, 160, 3, 2),
    (EXPANSION, 320, 1, 1),
)
TAPPED = (1, 2, 4, 6)  # the groups whose outputs are features
LAST_CHANNELS = 1280


class InvertedResidual(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = in_channels * expansion
        self.residual = stride == 1 and in_channels == channels
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, wide, kernel_size=1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(inplace=True),
            nn.Conv2d(wide, wide, kernel_size=3, stride=stride, padding=1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(inplace=True),
            nn.Conv2d(wide, channels, kernel_size=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(FeatureNet):
    """MobileNetV2 x0.5, expansion 6.

    Features: f0 the stem's output, f1 .. f4 [B, 12 | 16 | 48 | 160, ...], f5 [B, 1280].

    Args:
        num_classes: width of the logits.
        in_channels: channels of the images.
    """

    HEAD = "classifier.0"

    def __init__(self, *, num_classes: int = 100, in_channels: int = 3) -> None:
        super().__init__(num_classes, in_channels)
        channels = int(32 * WIDTH)
        self.conv1 = _conv_bn(in_channels, channels, kernel_size=3, stride=2)
        self.blocks = nn.ModuleList()
        for expansion, full, count, stride in GROUPS:
            group = []
            for i in range(count):
                group.append(InvertedResidual(channels, int(full * WIDTH), stride if i == 0 else 1, expansion))
                channels = int(full * WIDTH)
            self.blocks.append(nn.Sequential(*group))
        self.conv2 = _conv_bn(channels, LAST_CHANNELS, kernel_size=1)
        self.classifier = nn.Sequential(nn.Linear(LAST_CHANNELS, num_classes))
        init_by_fan_out(self)

    def features(self, x: Tensor, preact: bool = False) -> list[Tensor]:
        x = self.conv1(x)
        taps = [x]  # f0 [B, 16, H/2, W/2]
        for i, group in enumerate(self.blocks):
            x = group(x)
            if i in TAPPED:
                taps.append(x)
        return [*taps, global_pool(self.conv2(x))]


def _conv_bn(in_channels: int, channels: int, *, kernel_size: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, kernel_size, stride, padding=kernel_size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


def build(name: str, **options) -> MobileNetV2 | None:
    """The network called `name` (lower case), or None if it is not one of this family."""
    return MobileNetV2(**options) if name.replace("_", "") in ("mobilenetv2", "mobilenetv2x0.5") else None
