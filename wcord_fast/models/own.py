"""A user's own networks by name: by `register`, or by the dotted path of the function or class that makes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from ..dotted import is_path, qualified, resolve
from .stages import with_features

Maker = TypeVar("Maker", bound=Callable[..., nn.Module])

MAKERS: dict[str, Callable[..., nn.Module]] = {}
IMAGES, DEFAULT_SIZE = 3, (64, 64)  # random images that show the stages of a network without features


def register(name: str) -> Callable[[Maker], Maker]:
    """A decorator that makes a network selectable by name, here and in the command.

        @models.register("small")
        def small(num_classes, in_channels=3) -> nn.Module: ...

    The command finds it by its dotted path: `wcord-fast distill --student my_package.my_module.small`.

    A network whose `net(images, return_features=True)` returns (features, logits) is used unchanged. The stages of any
    other are found by `models.with_features`.

    Args:
        name: lower-case letters, digits and "_".
    Raises:
        ValueError: the name is taken or malformed.
        TypeError: the decorated object cannot be called.
    """

    def decorate(make: Maker) -> Maker:
        if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ValueError(f"name: expected lower-case letters, digits and '_', got {name!r}")
        if not callable(make):
            raise TypeError(f"{name}: expected a function or class that makes a network, got {make!r}")
        present = MAKERS.get(name)
        if present is not None and qualified(present) != qualified(make):  # a reloaded module replaces its own
            raise ValueError(f"name: {name!r} is taken by {qualified(present)}")
        MAKERS[name] = make
        return make

    return decorate


def maker(name: str) -> Callable[..., nn.Module] | None:
    """The function that makes the network of a registered name or dotted path; None for any other name.

    Raises:
        ValueError: the dotted path leads to nothing that can be called.
    """
    if name not in MAKERS and is_path(name, libraries=True):
        MAKERS[name] = resolve("name", name)
    return MAKERS.get(name)


def create(
    make: Callable[..., nn.Module],
    num_classes: int,
    *,
    in_channels: int = 3,
    image_size: Sequence[int] | None = None,
    features: str | Sequence[str] = (),
    **options: Any,
) -> Any:
    """The network that `make(num_classes=..., in_channels=..., **options)` returns, with features.

    Raises:
        TypeError: `make` returns no module.
        ValueError: no stages are found.
    """
    network = make(num_classes=num_classes, in_channels=in_channels, **options)
    if not isinstance(network, nn.Module):
        raise TypeError(f"name: expected {qualified(make)} to make a torch.nn.Module, got {type(network).__name__}")
    return with_features(network, torch.rand(IMAGES, in_channels, *(image_size or DEFAULT_SIZE)), features)
