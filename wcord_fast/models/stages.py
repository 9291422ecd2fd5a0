"""Finds the modules of any network whose outputs are its features, by one forward."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .base import FeatureNet
from .forms import tap_names
from .hooks import call
from .logits import logits_of
from .taps import Tapped

ONE_PIXEL = (1, 1)
BLOCKS = 4  # tapped blocks of a transformer, as many as most convolutional networks have stages


class ModuleOutput(NamedTuple):
    """The output of a module that ran once in a forward and returned one tensor."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]  # without the batch


def module_outputs(network: nn.Module, images: Tensor) -> tuple[list[ModuleOutput], Any]:
    """The outputs of modules that run once in a forward and return one tensor [B, ...], and the network's output.

    The forward is in eval mode and without gradient; every module's mode is restored.

    Args:
        network: any module with `network(images)`.
        images: [B, C, H, W].
    Returns:
        The modules' outputs in the order in which the modules end; the network's output.
    """
    ended: list[tuple[str, Any]] = []

    def append(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        ended.append((name, output))

    modules = {name: module for name, module in network.named_modules() if name}
    training = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad():
            result = call(network, images, {module: partial(append, name) for name, module in modules.items()}, {})
    finally:
        for module, mode in training.items():
            module.training = mode
    calls = Counter(name for name, _ in ended)
    return [
        ModuleOutput(name, modules[name], tuple(output.shape[1:]))
        for name, output in ended
        if calls[name] == 1 and isinstance(output, Tensor) and output.dim() > 1 and len(output) == len(images)
    ], result


def stage_names(outputs: Sequence[ModuleOutput]) -> tuple[str, ...]:
    """Taps of the stem and of the stages of a network, in order.

    Convolutional networks: the last module for each size of maps. Modules inside a block that reduces the maps, or
    inside a module that returns tokens, do not count, nor do maps of one pixel where there are others. Transformers:
    the embedding of the patches and BLOCKS of the blocks, evenly spaced, with their tokens as maps.

    Args:
        outputs: of `module_outputs` for square images; only with these are maps with the channels last recognised.
    """
    maps = {module.name: _size(module.shape) for module in outputs if len(module.shape) == 3}
    tokens = {module.name for module in outputs if len(module.shape) == 2}
    inside: dict[str, set[tuple[int, int]]] = {}  # sizes of the maps in a module, without those of one pixel
    for name, size in maps.items():
        for outer in _enclosing(name):
            inside.setdefault(outer, set()).update({size} - {ONE_PIXEL})
    last: dict[tuple[int, int], str] = {}
    smallest = None
    for module in outputs:
        if module.name not in maps or any(
            outer in tokens or (maps.get(outer, maps[module.name]) != maps[module.name] and len(inside[outer]) <= 2)
            for outer in _enclosing(module.name)
        ):
            continue
        size = maps[module.name]
        if smallest is not None and size[0] > smallest:
            continue  # enlarged for the classifier
        smallest = size[0] if size != ONE_PIXEL else smallest
        last.pop(size, None)
        last[size] = f"{module.name}:nhwc" if _channels_last(module.shape) else module.name
    blocks = _blocks(outputs)
    if blocks and len(last) <= 1:
        chosen = (
            [blocks[(i + 1) * len(blocks) // BLOCKS - 1] for i in range(BLOCKS)] if len(blocks) > BLOCKS else blocks
        )
        stem = [module for module in outputs if module.name in maps][:1]
        return (*(module.name for module in stem), *(f"{b.name}:map{_extra_tokens(b, stem)}" for b in chosen))
    return tuple({size: name for size, name in last.items() if size != ONE_PIXEL}.values() or last.values())


def _enclosing(name: str) -> list[str]:
    """The names of the modules that contain the module `name`."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _channels_last(shape: tuple[int, ...]) -> bool:
    return shape[0] == shape[1] != shape[2]


def _size(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of a map."""
    return (shape[0], shape[1]) if _channels_last(shape) else (shape[1], shape[2])


def _blocks(outputs: Sequence[ModuleOutput]) -> list[ModuleOutput]:
    """Modules with tokens [T, D] whose names differ by the number at the end; of several groups, the shallowest."""
    groups: dict[str, list[ModuleOutput]] = {}
    for module in outputs:
        prefix = module.name.rstrip("0123456789")
        if len(module.shape) == 2 and prefix != module.name:
            groups.setdefault(prefix, []).append(module)
    several = [group for group in groups.values() if len(group) > 1]
    return min(several, key=lambda group: group[0].name.count("."), default=[])


def _extra_tokens(block: ModuleOutput, stem: Sequence[ModuleOutput]) -> str:
    """Digits of the number of tokens beside the patches', which the stem's map counts; "" if it does not fit."""
    patches = [height * width for height, width in (_size(module.shape) for module in stem)]
    return str(block.shape[0] - patches[0]) if patches and 0 <= block.shape[0] - patches[0] < patches[0] else ""


def returns_features(network: nn.Module) -> bool:
    """Whether `network` takes `return_features=True`, as this package's networks do."""
    return (
        isinstance(network, FeatureNet | Tapped) or "return_features" in inspect.signature(network.forward).parameters
    )


def with_features(network: nn.Module, images: Tensor, features: str | Sequence[str] = ()) -> nn.Module:
    """`network` itself if it takes `return_features=True`, else a `Tapped` around it.

    Args:
        network: any module with `network(images) -> logits`, see `Tapped`.
        images: [B, C, H, W] on the network's device; one forward of them finds the features.
        features: names of modules; default: the stages, see `stage_names`. The penultimate vector is the input of the
            last `nn.Linear` that runs and gives the logits; without one, the global average of the last stage.
    Raises:
        ValueError: no such module; `features` for a network that has its own; neither a linear nor a stage.
        TypeError: `network` is no module; its output has no logits.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network: expected a torch.nn.Module, got {type(network).__name__}")
    if isinstance(network, torch.jit.ScriptModule):
        raise TypeError(
            f"network: expected a module in Python, got TorchScript's {type(network).__name__}, without hooks"
        )
    if returns_features(network):
        if features:
            raise ValueError(f"features: {type(network).__name__} has its own features, got {features!r}")
        return network
    outputs, result = module_outputs(network, images)
    width = logits_of(result, type(network).__name__).shape[-1]
    heads = [o.name for o in outputs if isinstance(o.module, nn.Linear) and o.shape == (width,)]
    taps = tap_names(features) or stage_names(outputs)
    if not heads and not taps:
        raise ValueError(
            f"features: {type(network).__name__} has no nn.Linear that gives the logits, nor feature maps; name modules"
        )
    return Tapped(network, taps, heads[-1] if heads else None)
