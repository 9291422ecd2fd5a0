"""Where the features of an unknown network are: found by one forward, for `Tapped`."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .answer import logits_of
from .base import FeatureNet
from .hooks import call
from .taps import Tapped


class Seen(NamedTuple):
    """A module that ran once in a forward and gave one tensor."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]  # of its output, without the batch


def outputs_seen(network: nn.Module, images: Tensor) -> tuple[list[Seen], Any]:
    """Every module that gives one tensor and runs once in a forward, in the order in which they end; and the answer.

    The forward is in eval mode and without gradient; every module's mode is restored.

    Args:
        network: any module with `network(images)`.
        images: [B, C, H, W].
    """
    ended: list[tuple[str, Any]] = []

    def note(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        ended.append((name, output))

    modules = {name: module for name, module in network.named_modules() if name}
    training = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad():
            answer = call(network, images, {module: partial(note, name) for name, module in modules.items()}, {})
    finally:
        for module, mode in training.items():
            module.training = mode
    times = Counter(name for name, _ in ended)
    return [
        Seen(name, modules[name], tuple(output.shape[1:]))
        for name, output in ended
        if times[name] == 1 and isinstance(output, Tensor)
    ], answer


def stage_names(seen: Sequence[Seen]) -> tuple[str, ...]:
    """The last module of every size of maps [C, H, W], in order: a convolutional network's stages.

    Maps of one pixel do not count where there are larger ones.
    """
    last: dict[tuple[int, ...], str] = {}
    for name, _, shape in seen:
        if len(shape) == 3:
            last.pop(shape[1:], None)
            last[shape[1:]] = name
    maps = {size: name for size, name in last.items() if size != (1, 1)} or last
    return tuple(maps.values())


def answers_features(network: nn.Module) -> bool:
    """Whether it takes `return_features=True`, as this package's networks do."""
    return (
        isinstance(network, FeatureNet | Tapped) or "return_features" in inspect.signature(network.forward).parameters
    )


def with_features(network: nn.Module, images: Tensor, features: str | Sequence[str] = ()) -> nn.Module:
    """A network that answers `return_features=True`: `network` itself if it does, else a `Tapped` round it.

    Args:
        network: any module with `network(images) -> logits`, see `Tapped`.
        images: [B, C, H, W] on its device, for one forward that finds the features.
        features: names of modules; default: the stages, see `stage_names`. The penultimate vector is the input of the
            last `nn.Linear` that runs and gives the logits; without one, the global average of the last stage.
    Raises:
        ValueError: no such module; `features` for a network that has its own; neither a linear nor a stage.
        TypeError: no module; an answer without logits.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network: expected a torch.nn.Module, got {type(network).__name__}")
    if answers_features(network):
        if features:
            raise ValueError(f"features: {type(network).__name__} has its own features, got {features!r}")
        return network
    seen, answer = outputs_seen(network, images)
    width = logits_of(answer, type(network).__name__).shape[-1]
    heads = [s.name for s in seen if isinstance(s.module, nn.Linear) and s.shape == (width,)]
    taps = (features,) if isinstance(features, str) else tuple(features) or stage_names(seen)
    if not heads and not taps:
        raise ValueError(
            f"features: {type(network).__name__} has no nn.Linear that gives the logits, nor feature maps; name modules"
        )
    return Tapped(network, taps, heads[-1] if heads else None)
