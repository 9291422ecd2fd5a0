"""Forward hooks that are on a network during one call of it, and gone afterwards."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

KEY = -1  # of a hook in a module's dict while a compiler traces; PyTorch's own count from 0

After = dict[nn.Module, Callable[..., None]]  # module -> hook(module, inputs, output)
Before = dict[nn.Module, Callable[..., None]]  # module -> hook(module, args, kwargs)

_registering = threading.Lock()  # PyTorch numbers hooks by a counter that two threads could read at once


@contextmanager
def hooked(after: After, before: Before) -> Iterator[None]:
    """The hooks on their modules inside, last among each module's hooks: they see what the network sees."""
    with _registering:
        handles = [module.register_forward_hook(hook) for module, hook in after.items()]
        handles += [module.register_forward_pre_hook(hook, with_kwargs=True) for module, hook in before.items()]
    try:
        yield
    finally:
        with _registering:
            for handle in handles:
                handle.remove()


def call(network: nn.Module, x: Any, after: After, before: Before) -> Any:
    """`network(x)` with these hooks on its modules."""
    if not torch.compiler.is_compiling():
        with hooked(after, before):
            return network(x)
    # A compiler can trace neither PyTorch's registration nor an assignment in its dicts, but that of other dicts.
    saved = []
    for module, hook in after.items():
        saved.append((module, "_forward_hooks", module._forward_hooks))
        module._forward_hooks = _with(module._forward_hooks, hook)
    for module, hook in before.items():
        for name, value in (("_forward_pre_hooks", hook), ("_forward_pre_hooks_with_kwargs", True)):
            saved.append((module, name, getattr(module, name)))
            setattr(module, name, _with(getattr(module, name), value))
    try:
        return network(x)
    finally:
        for module, name, hooks in saved:
            setattr(module, name, hooks or OrderedDict())  # of an empty one a compiler would leave a plain dict


def _with(hooks: dict[int, Any], value: Any) -> Any:
    return {**hooks, KEY: value}
