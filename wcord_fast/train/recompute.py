"""Gradient checkpointing: a network's blocks keep their inputs only, and the backward pass runs them again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from .network_calls import Forward

OPTION = "gradient_checkpointing"
Blocks = dict[str, nn.Module]


def blocks_of(network: nn.Module) -> Blocks:
    """The blocks that the backward pass runs again, by name. No block is inside another one.

    They are the modules of `nn.Sequential` and `nn.ModuleList` that have layers of their own, and every `nn.Sequential`
    of single layers outside of them.

    Raises:
        ValueError: the network has none.
    """
    result = dict(_blocks(network, "", listed=False))
    if not result:
        raise ValueError(
            f"{OPTION}: expected a network with blocks in an nn.Sequential or nn.ModuleList, got "
            f"{type(network).__name__}, which has none"
        )
    return result


def checkpointed(forward: Forward, blocks: Blocks) -> Forward:
    """`forward`, whose `blocks` the backward pass runs again. Outputs and gradients are equal.

    Buffers, such as the statistics of batch norms, change in the first run only. The second run draws equal random
    numbers. Features that are tapped inside a block have gradients.

    Raises (when called):
        NotImplementedError: a block's input is changed in place, by the block or after it.
    """

    def call(images: Tensor):
        with _patched(blocks):
            return forward(images)

    return call


def _blocks(module: nn.Module, prefix: str, listed: bool) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        path = prefix + name
        if not _has_layers(child):
            continue
        if isinstance(child, nn.Sequential | nn.ModuleList):
            if any(map(_has_layers, child.children())):
                yield from _blocks(child, f"{path}.", listed=True)
            elif isinstance(child, nn.Sequential):
                yield path, child
        elif listed:
            yield path, child
        else:
            yield from _blocks(child, f"{path}.", listed=False)


def _has_layers(module: nn.Module) -> bool:
    """Whether at least two modules in it have parameters of their own."""
    return sum(any(True for _ in m.parameters(recurse=False)) for m in module.modules()) >= 2


@contextmanager
def _patched(blocks: Blocks) -> Iterator[None]:
    """A context in which blocks keep their inputs only. Copies and pickles made outside are not patched."""
    previous = {module: module.__dict__.get("forward") for module in blocks.values()}  # a framework may have set one
    for name, module in blocks.items():
        module.forward = partial(_run, name, module, module.forward)
    try:
        yield
    finally:
        for module, forward in previous.items():
            del module.forward
            if forward is not None:
                module.forward = forward


class _SecondRun:
    """A context, entered once a backward pass, in which a block has the inputs and buffers of its first run."""

    def __init__(self, name: str, module: nn.Module, inputs: Any) -> None:
        self.name = name
        self.inputs = [x for x in tree_leaves(inputs) if isinstance(x, Tensor)]
        self.versions = [x._version for x in self.inputs]
        self.first_buffers = [(m, _copies(m._buffers)) for m in module.modules()]

    def require_inputs(self) -> None:
        if [x._version for x in self.inputs] != self.versions:
            raise NotImplementedError(
                f"{OPTION}: the input of {self.name!r} is changed in place, so that the block cannot be run again"
            )

    def __enter__(self) -> None:
        self.require_inputs()
        self.later_buffers = [(m, {name: m._buffers[name] for name in buffers}) for m, buffers in self.first_buffers]
        for m, buffers in self.first_buffers:
            m._buffers.update(_copies(buffers))

    def __exit__(self, *_: object) -> None:
        for m, buffers in self.later_buffers:
            m._buffers.update(buffers)


def _copies(buffers: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
    return {name: buffer.clone() for name, buffer in buffers.items() if buffer is not None}


def _run(name: str, module: nn.Module, forward: Callable, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    second_run = _SecondRun(name, module, (args, kwargs))
    result = checkpoint(forward, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), second_run), **kwargs)
    second_run.require_inputs()
    return result
