"""ImageNet's ResNet-18, ResNet-34 and Inception-v3: torchvision's layers (an optional extra), with our feature lists.

State-dict keys are torchvision's, so published weights load. Inception-v3 is without its auxiliary head: leave
`AuxLogits.*` out of a published file.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .base import FeatureNet, global_pool
from .torchvision_import import torchvision_models

NAMES = ("resnet18", "resnet34", "inception_v3")


class ImageNetResNet(FeatureNet):
    """ResNet-18 or -34 with ImageNet's stem (7x7, stride 2, pooling), made for 224x224 images.

    Features: f0 the stem's output [B, 64, H/4, W/4], f1 .. f4 the stages' outputs [B, 64 | 128 | 256 | 512, ...],
    f5 [B, 512].

    Args:
        name: "resnet18" or "resnet34".
        num_classes: width of the logits.
        in_channels: channels of the images.
    """

    conv1: nn.Module
    bn1: nn.Module
    maxpool: nn.Module
    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module

    def __init__(self, name: str, *, num_classes: int = 100, in_channels: int = 3) -> None:
        super().__init__(num_classes, in_channels)
        network = getattr(torchvision_models(name), name)(num_classes=num_classes)
        if in_channels != 3:
            network.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        _adopt(self, network)

    def features(self, x: Tensor, preact: bool = False) -> list[Tensor]:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        taps = [x]
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            *earlier, last = stage.children()
            for block in earlier:
                x = block(x)
            preact_output = _pre_activation(last, x)
            x = F.relu(preact_output)
            taps.append(preact_output if preact else x)
        return [*taps, global_pool(x)]


class InceptionV3(FeatureNet):
    """Inception-v3 (Szegedy et al. 2016), made for 299x299 images; the least size is 75x75.

    Features: f0 the stem's output [B, 192, 35, 35], f1 .. f3 the last blocks of its three resolutions, Mixed_5d
    [B, 288, 35, 35], Mixed_6e [B, 768, 17, 17] and Mixed_7c [B, 2048, 8, 8], f4 [B, 2048] (without dropout). Every
    branch ends in its own ReLU before all are joined, so there are no taps before the activation.

    Args:
        num_classes: width of the logits.
        in_channels: channels of the images.
    """

    dropout: nn.Module
    least_size = 75
    STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2")
    STAGES = (
        ("Mixed_5b", "Mixed_5c", "Mixed_5d"),
        ("Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
        ("Mixed_7a", "Mixed_7b", "Mixed_7c"),
    )

    has_preact = False

    def __init__(self, *, num_classes: int = 100, in_channels: int = 3) -> None:
        super().__init__(num_classes, in_channels)
        network = torchvision_models("inception_v3").inception_v3(
            weights=None, num_classes=num_classes, aux_logits=False, init_weights=True
        )
        if in_channels != 3:
            first = network.Conv2d_1a_3x3
            first.conv = nn.Conv2d(in_channels, 32, kernel_size=3, stride=2, bias=False)
            nn.init.trunc_normal_(first.conv.weight, std=0.1, a=-2, b=2)
        _adopt(self, network)

    def features(self, x: Tensor, preact: bool = False) -> list[Tensor]:
        if preact:
            raise ValueError("preact: Inception-v3 joins branches after their activations; it has no taps before them")
        taps = []
        for names in (self.STEM, *self.STAGES):
            for name in names:
                x = self.get_submodule(name)(x)
            taps.append(x)
        return [*taps, global_pool(x)]

    def logits(self, vector: Tensor) -> Tensor:
        return self.head(self.dropout(vector))


def _adopt(target: nn.Module, network: nn.Module) -> None:
    """Move the layers of `network` to `target`, under their names."""
    for name, child in network.named_children():
        target.add_module(name, child)


def _pre_activation(block: nn.Module, x: Tensor) -> Tensor:
    """The output of torchvision's BasicBlock before its last ReLU."""
    out = F.relu(block.bn1(block.conv1(x)))  # type: ignore[operator]
    out = block.bn2(block.conv2(out))  # type: ignore[operator]
    return out + (x if block.downsample is None else block.downsample(x))  # type: ignore[operator]


def build(name: str, **options) -> FeatureNet | None:
    """The network called `name` (lower case, `_` as separator), or None if it is not one of this family."""
    key = name.replace("_", "")
    if key in ("resnet18", "resnet34"):
        return ImageNetResNet(key, **options)
    return InceptionV3(**options) if key == "inceptionv3" else None
