"""VGG for small images (Simonyan and Zisserman 2015) with batch norm, as in the published distillation recipe.

Five blocks of 3x3 convolutions with 64, 128, 256, 512, 512 channels, a 2x2 max pooling between two blocks (none before
the last block unless the image is 64x64 or larger), global pooling, one linear.
"""

from __future__ import annotations

import re

from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import checks
from .base import FeatureNet, global_pool, init_by_fan_out

WIDTHS = (64, 128, 256, 512, 512)
BLOCKS = {  # convolutions in each block, by depth
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
NAMES = tuple(f"vgg{depth}" for depth in BLOCKS)
LAST_POOL_SIZE = 64  # images of at least this height are pooled before the last block too


class VGG(FeatureNet):
    """VGG-`depth` with batch norm.

    Features: f0 .. f4 the blocks' outputs [B, 64 | 128 | 256 | 512 | 512, ...], f5 [B, 512].

    Args:
        depth: 8, 11, 13, 16 or 19.
        num_classes: width of the logits.
        in_channels: channels of the images.
    """

    HEAD = "classifier"

    def __init__(self, depth: int, *, num_classes: int = 100, in_channels: int = 3) -> None:
        super().__init__(num_classes, in_channels)
        channels = (in_channels, *WIDTHS)
        for i, count in enumerate(BLOCKS[checks.choice("depth", depth, BLOCKS)]):
            self.add_module(f"block{i}", _block(channels[i], channels[i + 1], count))
        self.classifier = nn.Linear(WIDTHS[-1], num_classes)
        init_by_fan_out(self)

    def features(self, x: Tensor, preact: bool = False) -> list[Tensor]:
        pooled = [False, True, True, True, x.shape[2] >= LAST_POOL_SIZE]
        taps = []
        for i, pool in enumerate(pooled):
            preact_output = self.get_submodule(f"block{i}")(F.max_pool2d(x, 2) if pool else x)
            x = F.relu(preact_output)
            taps.append(preact_output if preact and i > 0 else x)
        return [*taps, global_pool(x)]


def _block(in_channels: int, channels: int, count: int) -> nn.Sequential:
    """`count` convolutions with batch norm, and ReLUs between them; the caller applies the last ReLU."""
    layers: list[nn.Module] = []
    for _ in range(count):
        layers += [nn.Conv2d(in_channels, channels, kernel_size=3, padding=1), nn.BatchNorm2d(channels)]
        layers.append(nn.ReLU(inplace=True))
        in_channels = channels
    return nn.Sequential(*layers[:-1])


def build(name: str, **options) -> VGG | None:
    """The network called `name` ("vgg8", "vgg13_bn"), or None if it is not one of this family."""
    match = re.fullmatch(r"vgg_?(\d+)(_?bn)?", name)
    return VGG(int(match[1]), **options) if match and int(match[1]) in BLOCKS else None
