"""The modules of an unknown network that give its features, found by one forward, for `Tapped`."""

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

ONE_PIXEL = (1, 1)
BLOCKS = 4  # of a transformer that are tapped, as most convolutional networks have four stages


class Seen(NamedTuple):
    """A module that ran once in a forward and gave one tensor."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]  # of its output, without the batch


def outputs_seen(network: nn.Module, images: Tensor) -> tuple[list[Seen], Any]:
    """The modules that run once in a forward and give one tensor [B, ...], in the order in which they end; the answer.

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
        if times[name] == 1 and isinstance(output, Tensor) and output.dim() > 1 and len(output) == len(images)
    ], answer


def stage_names(seen: Sequence[Seen]) -> tuple[str, ...]:
    """Taps of the stem and of the stages of a network, in order.

    Convolutional networks: the last module of every size of maps. What is inside a block that reduces the maps, or
    inside a module that gives tokens, does not count, nor do maps of one pixel where there are others. Transformers:
    the embedding of the patches and BLOCKS of the blocks, evenly spaced, their tokens as maps.

    Args:
        seen: by `outputs_seen`, of square images, by which maps with the channels last are told from others.
    """
    maps = {module.name: _size(module.shape) for module in seen if len(module.shape) == 3}
    tokens = {module.name for module in seen if len(module.shape) == 2}
    inside: dict[str, set[tuple[int, int]]] = {}  # sizes of the maps in a module, those of one pixel left out
    for name, size in maps.items():
        for outer in _outer(name):
            inside.setdefault(outer, set()).update({size} - {ONE_PIXEL})
    last: dict[tuple[int, int], str] = {}
    least = None
    for module in seen:
        if module.name not in maps or any(
            outer in tokens or (maps.get(outer, maps[module.name]) != maps[module.name] and len(inside[outer]) <= 2)
            for outer in _outer(module.name)
        ):
            continue
        size = maps[module.name]
        if least is not None and size[0] > least:
            continue  # enlarged for the classifier
        least = size[0] if size != ONE_PIXEL else least
        last.pop(size, None)
        last[size] = f"{module.name}:nhwc" if _channels_last(module.shape) else module.name
    blocks = _blocks(seen)
    if blocks and len(last) <= 1:
        chosen = (
            [blocks[(i + 1) * len(blocks) // BLOCKS - 1] for i in range(BLOCKS)] if len(blocks) > BLOCKS else blocks
        )
        stem = [module for module in seen if module.name in maps][:1]
        return (*(module.name for module in stem), *(f"{b.name}:map{_extra(b, stem)}" for b in chosen))
    return tuple({size: name for size, name in last.items() if size != ONE_PIXEL}.values() or last.values())


def _outer(name: str) -> list[str]:
    """The names of the modules that the module `name` is in."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _channels_last(shape: tuple[int, ...]) -> bool:
    return shape[0] == shape[1] != shape[2]


def _size(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of a map."""
    return (shape[0], shape[1]) if _channels_last(shape) else (shape[1], shape[2])


def _blocks(seen: Sequence[Seen]) -> list[Seen]:
    """Modules with tokens [T, D] whose names differ by the number at their end; the shallowest of several groups."""
    groups: dict[str, list[Seen]] = {}
    for module in seen:
        stem = module.name.rstrip("0123456789")
        if len(module.shape) == 2 and stem != module.name:
            groups.setdefault(stem, []).append(module)
    several = [group for group in groups.values() if len(group) > 1]
    return min(several, key=lambda group: group[0].name.count("."), default=[])


def _extra(block: Seen, stem: Sequence[Seen]) -> str:
    """How many tokens there are beside those of the patches, which the stem has shown; as digits, "" if it has not."""
    patches = [height * width for height, width in (_size(module.shape) for module in stem)]
    return str(block.shape[0] - patches[0]) if patches and 0 <= block.shape[0] - patches[0] < patches[0] else ""


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
