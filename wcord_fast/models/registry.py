"""Networks by name."""

from __future__ import annotations

from typing import Any

import torch

from ..ops import checks
from . import imagenet, mobilenetv2, resnet, resnet50, shufflenetv1, shufflenetv2, vgg, wrn
from .base import FeatureNet

# A family has NAMES, the published ones, and build(name, **options), which answers None to a name that is not
# its own.
FAMILIES = (resnet, wrn, vgg, resnet50, mobilenetv2, shufflenetv1, shufflenetv2, imagenet)


def names() -> tuple[str, ...]:
    """The published networks, by family. Any other "wrn_<depth>_<width>" with depth 6n+4 works too."""
    return tuple(name for family in FAMILIES for name in family.NAMES)


def create(name: str, num_classes: int = 100, **options: Any) -> FeatureNet:
    """A freshly initialised network.

    Args:
        name: one of `names()`, or any "wrn_<depth>_<width>"; any case, "-" or "_" ("ResNet8x4", "WRN-40-2").
        num_classes: width of the logits.
        **options: of the family: `in_channels` (default 3); wide ResNets also `dropout`.

    Raises:
        ValueError: an unknown name (the nearest is suggested) or an option out of range.
        TypeError: an option that the family does not have.
        ImportError: a network of torchvision, which is not installed.
    """
    if not isinstance(name, str):
        raise TypeError(f"name: expected a str, got {type(name).__name__}")
    key = name.strip().lower().replace("-", "_").replace(" ", "_")
    for family in FAMILIES:
        net = family.build(key, num_classes=num_classes, **options)
        if net is not None:
            return net
    return checks.choice("name", key, names())  # raises: every name in the list has its family


def least_size(name: str) -> int:
    """The smallest height and width of images that the network `name` takes."""
    with torch.device("meta"):
        return create(name).least_size
