"""Whether a tensor on a GPU holds no NaN, learned once and without waiting for the device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .eager import PLAIN


class WithoutNaN:
    """Remembers that one small tensor holds no NaN, until it is written to or replaced."""

    def __init__(self) -> None:
        self._tested: tuple[Tensor, int] | None = None  # the tensor that was tested, and its count of writes
        self._result: Callable[[], bool | None] = _not_yet

    def start(self, tensor: Tensor, filled: Tensor | None = None) -> None:
        """Start the test, unless one is running. Its answer arrives after all work that is queued now.

        Args:
            filled: written to `tensor` first. It may differ only where that is NaN, so the answer of a running test
                stays valid. (A host that is always steps ahead of the device would never get another answer.)
        """
        possible = can_test(tensor)
        running = possible and self._is_current(tensor) and self._result() is not True
        if filled is not None:
            tensor.copy_(filled)
        if not possible:
            return
        if not running:
            self._result = result_later(torch.isnan(tensor.detach()).any())
        self._tested = tensor, tensor._version

    def known(self, tensor: Tensor) -> bool:
        """True only if the answer for this tensor and its present value has arrived, and there is no NaN."""
        return can_test(tensor) and self._is_current(tensor) and self._result() is False

    def _is_current(self, tensor: Tensor) -> bool:
        return self._tested is not None and self._tested[0] is tensor and self._tested[1] == tensor._version


def can_test(tensor: Tensor) -> bool:
    """Whether a test is possible. It is not in a graph, whose values change, nor where operators are traced."""
    if torch.compiler.is_compiling() or type(tensor) not in PLAIN or not tensor.is_cuda or tensor.is_inference():
        return False
    return not torch.cuda.is_current_stream_capturing()


def result_later(flag: Tensor) -> Callable[[], bool | None]:
    """The value of a bool on a GPU, or None while it is not there yet."""
    copy = torch.empty((), dtype=torch.bool, pin_memory=True)
    copy.copy_(flag, non_blocking=True)
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(flag.device))
    return lambda: bool(copy) if done.query() else None


def _not_yet() -> None:
    return None
