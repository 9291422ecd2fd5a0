"""Eval mode for a while, after which every module is in its own mode again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """`module` in eval mode inside; afterwards every submodule in its own mode again (a frozen BatchNorm too)."""
    before = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in before:
            m.training = training
