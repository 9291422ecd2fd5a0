"""The calls of the networks in a step: eager or compiled."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..distill import Outputs

Forward = Callable[[Tensor], Outputs]  # images [B, C, H, W] -> Outputs


def plain(network: Callable) -> Forward:
    """A call of `network` that returns its features and logits."""
    return lambda images: Outputs(*network(images, return_features=True))


def compiled(calls: dict[str, Forward]) -> dict[str, Forward]:
    """The calls, compiled by `torch.compile`. The networks' parameters, modes and state dicts are not changed.

    Shapes are static: one graph for the batch and one for an epoch's smaller last one. The losses are not
    compiled: they consist of this library's operators, which a compiler leaves as they are.
    """
    torch.compiler.reset()  # an earlier run's graphs would count against the limit of recompilations
    return {name: _with_compile_error(torch.compile(forward, dynamic=False)) for name, forward in calls.items()}


def _with_compile_error(forward: Forward) -> Forward:
    """`forward`, which raises NotImplementedError if PyTorch cannot compile it on this machine."""
    from torch._dynamo.exc import TorchDynamoException

    def call(images: Tensor) -> Outputs:
        try:
            return forward(images)
        except TorchDynamoException as error:
            message = " ".join(str(error).split())[:300] or type(error).__name__
            raise NotImplementedError(f"compile: PyTorch cannot compile this network here: {message}") from error

    return call
