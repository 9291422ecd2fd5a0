"""The emulated kernels under the native module's names, so that the Python launchers run unchanged on CPU tensors."""

from __future__ import annotations

import ctypes


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
