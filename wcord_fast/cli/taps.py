"""`wcord-fast taps`: where the features of a network are taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from .. import models
from ..models.stages import module_outputs
from ..ops import checks
from ..train.tables import Line, text_table
from .config import require_architecture
from .parser import parse, usage


@dataclass
class TapsOptions:
    """The features of a network, and with --modules every module that a feature can be taken from, with shapes.

    Attributes:
        model: name of a network, as for --teacher.
        image_size: height and width of the images.
        channels: of the images.
        modules: list all modules that run once and give one tensor.
    """

    model: Annotated[str, models.names]
    image_size: int = 32
    channels: int = 3
    modules: bool = False

    def __post_init__(self) -> None:
        checks.integer("image_size", self.image_size, least=1)
        checks.integer("channels", self.channels, least=1)
        require_architecture("model", self.model)


def run(argv: list[str]) -> None:
    """Print the features of a network."""
    options, _ = parse("taps", TapsOptions, argv, trains=False)
    network = usage(models.create, options.model, in_channels=options.channels)
    images = torch.zeros(2, options.channels, options.image_size, options.image_size)
    with torch.no_grad():
        features, logits = usage(network.eval(), images, return_features=True)
    if isinstance(network, models.Tapped):
        names = [*network.taps, f"input of {network.penultimate}" if network.penultimate else "mean of the last"]
    else:
        names = [f"f{i}" for i in range(len(features))]
    lines: list[Line] = [
        {"feature": str(i), "module": name, "shape": _shape(feature)}
        for i, (name, feature) in enumerate(zip(names, features, strict=True))
    ]
    print(f"{options.model}: {options.image_size}x{options.image_size} pixels to {logits.shape[1]} classes")
    print(text_table(lines))
    if options.modules:
        inner: torch.nn.Module = network
        if isinstance(network, models.LibraryNetwork):
            inner, images = network.network, network.prepare(images)
        outputs, _ = module_outputs(inner, images)
        print(f"\n{text_table([{'module': o.name, 'shape': _sizes(o.shape)} for o in outputs])}")


def _shape(feature: torch.Tensor) -> str:
    return _sizes(tuple(feature.shape[1:]))


def _sizes(shape: tuple[int, ...]) -> str:
    return "[B, " + ", ".join(map(str, shape)) + "]"
