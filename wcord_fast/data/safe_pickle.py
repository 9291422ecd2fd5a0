"""Reads the pickles of CIFAR without running anything that a pickle may name.

A pickle is a program: `pickle.load` of a downloaded file can run any command. The published files need lists,
dicts, strings, numbers and one uint8 array, so only the array's few globals resolve, and to the stand-ins
below, which build that array from its bytes and nothing else. Protocols 0 to 5 are read, without out-of-band buffers.
"""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import IO, Any

import numpy as np


class _Dtype:
    def __init__(self, spec: Any, *_: Any) -> None:
        if spec not in ("u1", b"u1", "|u1", b"|u1"):
            raise pickle.UnpicklingError(f"an array of dtype {spec!r}, expected uint8")

    def __setstate__(self, state: Any) -> None:
        """Byte order and alignment mean nothing for one byte."""


class _Array:
    """Filled by the pickle's BUILD step; `array` is read-only."""

    array: np.ndarray

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, column_major, raw = state
        if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes) or len(raw) != math.prod(shape):
            raise pickle.UnpicklingError(f"an array of shape {shape} does not match its bytes")
        self.array = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if column_major else "C")


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: str) -> _Array:
    """Stands for NumPy's function, with which protocol 5 writes a contiguous array."""
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", bytes(raw) if isinstance(raw, bytearray) else raw))
    return array


def _latin1(text: str, encoding: str) -> bytes:
    """Stands for `codecs.encode`, with which Python 3 writes bytes in the old protocols."""
    return text.encode("latin1")


_GLOBALS = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
    ("_codecs", "encode"): _latin1,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _GLOBALS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is refused") from None


def load(path: Path) -> dict[str, Any]:
    """The dict in `path`, keys as str, arrays as uint8 numpy arrays.

    Raises:
        ValueError: the file is truncated or corrupt, is no dict, or refers to a global that such a file does not need.
    """
    with path.open("rb") as file:
        return read(file, str(path))


def read(file: IO[bytes], path: str) -> dict[str, Any]:
    """`load` for an open file; `path` is its name in messages."""
    try:
        result = _Unpickler(file, encoding="bytes").load()
    except OSError:
        raise
    except Exception as err:  # a damaged pickle can raise nearly anything
        raise ValueError(f"{path}: not a readable CIFAR pickle: {err or type(err).__name__}") from err
    if not isinstance(result, dict):
        raise ValueError(f"{path}: expected a pickled dict, got {type(result).__name__}")
    return {
        key.decode("latin1") if isinstance(key, bytes) else str(key): getattr(value, "array", value)
        for key, value in result.items()
    }
