"""The interface of every network of this package: logits, features, and their sizes."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ..ops import checks

LEAST_SIZE = 8  # the families for small images leave at least one pixel of 8x8


class FeatureNet(nn.Module):
    """Base of the networks: a subclass builds its layers, the last of them named by HEAD, and implements `features`.

    Attributes:
        HEAD: path of the last linear, which is part of the published state-dict keys.
        least_size: the smallest height and width that the network takes.
        num_classes: width of the logits.
        in_channels: channels of the input images.
        feature_dim: width of the penultimate vector, `features[-1]`.
    """

    HEAD = "fc"
    least_size = LEAST_SIZE

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.num_classes = checks.integer("num_classes", num_classes, least=1)
        self.in_channels = checks.integer("in_channels", in_channels, least=1)

    @property
    def head(self) -> nn.Linear:
        """The last linear: penultimate vector -> logits."""
        return cast(nn.Linear, self.get_submodule(self.HEAD))

    @property
    def feature_dim(self) -> int:
        return self.head.in_features

    def features(self, x: Tensor, preact: bool = False) -> list[Tensor]:
        """The feature list [f0, ..., fk] of images x [B, C, H, W]; fk is [B, feature_dim]."""
        raise NotImplementedError(f"{type(self).__name__} does not implement features()")

    def logits(self, vector: Tensor) -> Tensor:
        """Logits [B, num_classes] of the penultimate vector [B, feature_dim]."""
        return self.head(vector)

    def forward(
        self, x: Tensor, return_features: bool = False, preact: bool = False
    ) -> Tensor | tuple[list[Tensor], Tensor]:
        """Logits [B, num_classes], or (features, logits) with `return_features=True`.

        Args:
            x: images, float [B, in_channels, H, W], H and W at least `least_size`, any memory format.
            return_features: also return the list [f0, ..., fk] (see `features`).
            preact: stage outputs f1 .. f(k-1) before their activation; f0 and fk are the same either way.

        Raises:
            TypeError, ValueError: x is not a float tensor of that shape.
        """
        checks.tensor("x", x, shape=("B", self.in_channels, "H", "W"))
        least = self.least_size
        if x.shape[2] < least or x.shape[3] < least:
            raise ValueError(f"x: expected images of at least {least}x{least}, got {x.shape[2]}x{x.shape[3]}")
        features = self.features(x, preact)
        logits = self.logits(features[-1])
        return (features, logits) if return_features else logits


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)


def init_convolutions(net: nn.Module) -> None:
    """He's normal initialisation by fan-out for every convolution; batch norms start as the identity."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def init_by_fan_out(net: nn.Module) -> None:
    """Normal with variance 2 / (k * k * out_channels) for every convolution, 0.01^2 for every linear, zero biases."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, std=(2.0 / fan_out) ** 0.5)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def global_pool(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C], the mean over the image."""
    return torch.nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)
