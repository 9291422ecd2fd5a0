"""Forward hooks that a network has during one call only."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

KEY = -1  # key of a hook while a compiler traces; PyTorch's own keys count from 0

After = dict[nn.Module, Callable[..., None]]  # module -> hook(module, inputs, output)
Before = dict[nn.Module, Callable[..., None]]  # module -> hook(module, args, kwargs)

_registration_lock = threading.Lock()  # PyTorch numbers hooks by a counter that two threads could read at once


@contextmanager
def hooked(after: After, before: Before) -> Iterator[None]:
    """Register the hooks inside the context, last on each module, so that they get the values that the network uses."""
    with _registration_lock:
        handles = [module.register_forward_hook(hook) for module, hook in after.items()]
        handles += [module.register_forward_pre_hook(hook, with_kwargs=True) for module, hook in before.items()]
    try:
        yield
    finally:
        with _registration_lock:
            for handle in handles:
                handle.remove()


def call(network: nn.Module, x: Any, after: After, before: Before) -> Any:
    """`network(x)` with these hooks on its modules."""
    if not torch.compiler.is_compiling():
        with hooked(after, before):
            return network(x)
    # A compiler can trace neither PyTorch's registration nor a change of its dicts, but a replacement of them.
    saved = []
    for module, hook in after.items():
        saved.append((module, "_forward_hooks", module._forward_hooks))
        module._forward_hooks = _with_hook(module._forward_hooks, hook)
    for module, hook in before.items():
        for name, value in (("_forward_pre_hooks", hook), ("_forward_pre_hooks_with_kwargs", True)):
            saved.append((module, name, getattr(module, name)))
            setattr(module, name, _with_hook(getattr(module, name), value))
    try:
        return network(x)
    finally:
        for module, name, hooks in saved:
            setattr(module, name, hooks or OrderedDict())  # a compiler would leave a plain dict for an empty one


def _with_hook(hooks: dict[int, Any], value: Any) -> Any:
    return {**hooks, KEY: value}
