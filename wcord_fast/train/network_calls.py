"""The calls of the networks in a step: eager or compiled."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..distill import Outputs

Forward = Callable[[Tensor], Outputs]  # of images [B, C, H, W]


def plain(network: Callable) -> Forward:
    """A network's features and logits as `Outputs`."""
    return lambda images: Outputs(*network(images, return_features=True))


def compiled(calls: dict[str, Forward]) -> dict[str, Forward]:
    """The networks through `torch.compile`. Parameters, modes and state dicts stay their own.

    Shapes are static: one graph for the batch and one for an epoch's smaller last one. The losses are left out: their
    work is in operators of this library, which a compiler takes as they are.
    """
    torch.compiler.reset()  # what an earlier run of this process compiled counts against the limit of recompilations
    return {name: _explained(torch.compile(forward, dynamic=False)) for name, forward in calls.items()}


def _explained(forward: Forward) -> Forward:
    """NotImplementedError for a network, or a machine, that PyTorch cannot compile for."""
    from torch._dynamo.exc import TorchDynamoException

    def explained(images: Tensor) -> Outputs:
        try:
            return forward(images)
        except TorchDynamoException as error:
            message = " ".join(str(error).split())[:300] or type(error).__name__
            raise NotImplementedError(f"compile: PyTorch cannot compile this network here: {message}") from error

    return explained
