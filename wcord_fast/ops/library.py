"""Registration of the ops with `torch.library`: one call per op, in one namespace."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch

NAMESPACE = "wcord_fast"
implementations: dict[str, Callable] = {}  # by the op's name, each with autocast off
_library = torch.library.Library(NAMESPACE, "DEF")


def register(schema: str, impl: Callable, fake: Callable):
    """Define `schema`, give it one implementation for all devices, and its fake (shape-only) version.

    The implementation runs with autocast off: the op has its own dtype policy (fp32 accumulation), and autocast must
    not round a matrix product inside it. Returns the callable op.
    """
    name = schema.split("(", 1)[0]

    @wraps(impl)
    def exact(*args):
        if not (torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")):
            return impl(*args)
        with _autocast_off():
            return impl(*args)

    implementations[name] = exact
    _library.define(schema, tags=[torch.Tag.pt2_compliant_tag])
    _library.impl(name, exact, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    return getattr(getattr(torch.ops, NAMESPACE), name).default


class _autocast_off:
    """Autocast disabled on the CPU and, where there is one, on CUDA."""

    def __enter__(self):
        self._contexts = [torch.autocast("cpu", enabled=False)]
        if torch.cuda.is_available():
            self._contexts.append(torch.autocast("cuda", enabled=False))
        for c in self._contexts:
            c.__enter__()

    def __exit__(self, *exc):
        for c in reversed(self._contexts):
            c.__exit__(*exc)
