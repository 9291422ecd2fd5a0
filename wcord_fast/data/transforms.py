"""Transforms of single training images: torchvision's, or a function of the user's."""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..dotted import resolve
from ..models.torchvision_import import torchvision_models
from ..ops import checks

V2 = "v2:"


class Transforms:
    """uint8 [C, H, W] -> uint8 [C, H, W], on the CPU. Its draws are a function of the seed in a call.

    Args:
        text: "v2:RandAugment(num_ops=2)+RandomErasing(p=0.25)", classes of torchvision.transforms.v2 with literal
            arguments, applied in that order; or the dotted path of a function or of a class that is made without
            arguments.
    Raises:
        ValueError: no such class, arguments that it refuses, or torchvision is missing; TypeError: `text` is no str.
    """

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise TypeError(f"transforms: expected a str, got {type(text).__name__}")
        self.text = text
        if text.startswith(V2):
            self.steps = [_step(node, text) for node in _summands(text.removeprefix(V2), text)]
        else:
            transform = resolve("transforms", text)
            self.steps = [transform() if isinstance(transform, type) else transform]

    def __call__(self, image: Tensor, seed: Sequence[int]) -> Tensor:
        """`image` transformed. The states of torch's CPU generator, numpy's and Python's are restored."""
        with _seeded(seed):
            result: Any = image
            for step in self.steps:
                result = step(result)
        if not isinstance(result, Tensor) or result.dtype != torch.uint8 or result.shape != image.shape:
            given = f"{result.dtype} {list(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
            raise ValueError(f"transforms: expected {self.text!r} to give uint8 {list(image.shape)}, got {given}")
        return result

    def batch(self, images: Tensor, rows: Tensor, seed: Sequence[int]) -> Tensor:
        """The transformed `images` uint8 [B, C, H, W] on their device, each with the seed of its row."""
        pixels = images.cpu().contiguous()
        result = [self(image, (*seed, row)) for image, row in zip(pixels, rows.tolist(), strict=True)]
        return torch.stack(result).to(images.device)


def parsed(transforms: Transforms | str | None) -> Transforms | None:
    """The transforms that a user gives as they are or as text."""
    return transforms if transforms is None or isinstance(transforms, Transforms) else Transforms(transforms)


def _summands(text: str, whole: str) -> list[ast.expr]:
    """The terms of a sum, in order."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        raise ValueError(f"transforms: expected {V2}NAME(key=value)+..., got {whole!r}") from None
    result: list[ast.expr] = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        result.append(node.right)
        node = node.left
    return [node, *reversed(result)]


def _step(node: ast.expr, whole: str) -> Callable[[Tensor], Tensor]:
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(call.func, ast.Name) or any(k.arg is None for k in call.keywords):
        raise ValueError(f"transforms: expected {V2}NAME(key=value)+..., got {whole!r}")
    classes = _v2_classes(whole)
    transform = classes[checks.choice("transforms", call.func.id, classes)]
    try:
        args = [ast.literal_eval(value) for value in call.args]
        kwargs = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        return transform(*args, **kwargs)
    except (TypeError, ValueError) as error:
        raise ValueError(f"transforms: {ast.unparse(call)} cannot be made: {error}") from None


def _v2_classes(whole: str) -> dict[str, Callable[..., Any]]:
    """The transforms of torchvision.transforms.v2 by name."""
    try:
        torchvision_models(repr(whole))  # imports torchvision
        from torchvision.transforms import v2
    except ImportError as error:
        raise ValueError(f"transforms: {error}") from None
    classes = {name: c for name, c in vars(v2).items() if isinstance(c, type)}
    return {name: c for name, c in classes.items() if issubclass(c, v2.Transform) and c is not v2.Transform}


@contextmanager
def _seeded(seed: Sequence[int]) -> Iterator[None]:
    seeds = [int(x) for x in np.random.SeedSequence(seed).generate_state(3)]
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(seeds[0])  # not torch.manual_seed, which seeds every device
    np.random.seed(seeds[1])
    random.seed(seeds[2])
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
