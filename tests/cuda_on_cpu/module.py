"""The emulated kernels under the native module's names, so that the Python launchers run unchanged on CPU tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from wcord_fast.ops import native_module, status


class EmulatedModule:
    """`cuda_*` functions that call `wcf_cuda_*` of a library compiled by build.py."""

    def __init__(self, library: ctypes.CDLL):
        self.library = library

    def __getattr__(self, name: str):
        function = getattr(self.library, f"wcf_{name}")
        # On the CPUs that tests run on an integer argument takes a full word, whatever its declared width.
        return lambda *args: function(
            *(ctypes.c_double(a) if isinstance(a, float) else ctypes.c_int64(a) for a in args)
        )

    @staticmethod
    def cuda_error_string(code: int) -> str:
        return f"error {code}"


@contextmanager
def emulated(library: ctypes.CDLL, seed: int = 1) -> Iterator[None]:
    """Inside, native launchers run the kernels of `library`, blocks and threads in the order of `seed`.

    Flags go to a fresh status word. Memory from torch.empty comes as NaN or the largest integer, so that an element
    that no kernel has written shows.
    """
    library.cuda_on_cpu_seed(ctypes.c_uint64(seed))
    deterministic = torch.are_deterministic_algorithms_enabled()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_module, "module", lambda: EmulatedModule(library))
        patch.setattr(native_module, "stream_of", lambda tensor: (0, 0))
        patch.setattr(status, "_words", {})
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic)
