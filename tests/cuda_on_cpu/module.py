"""The emulated kernels under the native module's names, so that the Python launchers run unchanged on CPU tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from wcord_fast.ops import native_module, status


class EmulatedModule:
    """The native module, but its `cuda_*` functions call `wcf_cuda_*` of a library compiled by build.py.

    Records, codes and constants are the native module's own: both are compiled from the same headers.
    """

    def __init__(self, library: ctypes.CDLL):
        self.library = library
        self.native = native_module.module()

    def __getattr__(self, name: str):
        if not name.startswith("cuda_"):
            return getattr(self.native, name)
        function = getattr(self.library, f"wcf_{name}")
        return lambda record: function(ctypes.c_void_p(record.address))

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
        module = EmulatedModule(library)
        patch.setattr(native_module, "module", lambda: module)
        patch.setattr(native_module, "stream_of", lambda tensor: (0, 0))
        patch.setattr(status, "_words", {})
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic)
