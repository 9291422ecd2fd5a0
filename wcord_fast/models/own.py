"""A user's own networks: by a registered name, or by the dotted path of the function or class that makes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ..dotted import is_path, qualified, resolve
from ..ops import checks
from .stages import with_features

MAKERS: dict[str, Callable[..., nn.Module]] = {}
IMAGES, DEFAULT_SIZE = 3, (64, 64)  # random images that show the stages of a network without features


def spelled(name: str) -> str:
    """`name` in lower case, with "_" as separator."""
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def maker(name: str) -> Callable[..., nn.Module] | None:
    """The function that makes the network of a registered name (any case) or dotted path; None for any other name.

    Raises:
        ValueError: the dotted path leads to nothing that can be called.
    """
    if not is_path(name, libraries=True):
        return MAKERS.get(spelled(name))
    if name not in MAKERS:
        MAKERS[name] = resolve("name", name)
    return MAKERS[name]


def create(
    make: Callable[..., nn.Module],
    num_classes: int,
    *,
    in_channels: int = 3,
    pretrained: bool = False,
    image_size: Sequence[int] | None = None,
    features: str | Sequence[str] = (),
    **options: Any,
) -> Any:
    """The network that `make(num_classes=..., in_channels=..., **options)` returns, with features.

    Raises:
        TypeError: `make` returns no module.
        ValueError: no stages are found; pretrained, which `make` does not take; an option out of range.
    """
    checks.integer("num_classes", num_classes, least=1)
    checks.integer("in_channels", in_channels, least=1)
    size = DEFAULT_SIZE if image_size is None else _checked_size(image_size)
    if pretrained:
        taken = inspect.signature(make).parameters
        if "pretrained" not in taken and all(p.kind is not p.VAR_KEYWORD for p in taken.values()):
            raise ValueError(
                f"pretrained: goes with a library's network or a function that takes it, got {qualified(make)}"
            )
        options["pretrained"] = pretrained
    network = make(num_classes=num_classes, in_channels=in_channels, **options)
    if not isinstance(network, nn.Module):
        raise TypeError(f"name: expected {qualified(make)} to make a torch.nn.Module, got {type(network).__name__}")
    return with_features(network, torch.rand(IMAGES, in_channels, *size), features)


def _checked_size(image_size: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(image_size, Sequence) or len(image_size) != 2:
        raise ValueError(f"image_size: expected height and width, got {image_size!r}")
    return tuple(checks.integer("image_size", side, least=1) for side in image_size)
