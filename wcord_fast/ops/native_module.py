"""The compiled core, `wcord_fast._native`: loads it at first use, or keeps the reason why it is missing.

Nothing happens at import time. The CPU code needs no device; the CUDA code counts as available only after a one-element
kernel has run on the current device.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import status
from .status import Code
from .warn import warn

_PROBE = 0x5EED
_STATUS_BITS = {
    "index_bit": int(Code.INDEX),
    "anchor_bit": int(Code.ANCHOR),
    "update_row_bit": int(Code.UPDATE_ROW),
    "ot_input_bit": int(Code.OT_INPUT),
    "zero_row_bit": int(Code.ZERO_ROW),
    "marginal_bit": int(Code.MARGINAL),
}
_NAME = f"{__package__.rpartition('.')[0]}._native"
_RECORD = Path(__file__).resolve().parent.parent / "_build_info.json"


def load() -> ModuleType | None:
    """The compiled module, or None after one warning; `unavailable_reason("cpu")` returns the reason."""
    return _load()[0]


def unavailable_reason(device: str) -> str | None:
    """The reason why the native code cannot run on a kind of device ("cpu", "cuda") in this process, or None if it can.

    The first call for "cuda" runs a kernel and waits for it, so make it before a graph capture.
    """
    module, reason = _load()
    if module is None:
        return reason
    if device == "cpu":
        return None
    return _cuda_unavailable_reason() if device == "cuda" else f"the native module has no code for {device}"


def module() -> Any:
    """The compiled module.

    Raises:
        RuntimeError: it is not there, with the reason.
    """
    result, reason = _load()
    if result is None:
        raise RuntimeError(f"the native module is not available: {reason}")
    return result


def build_record() -> dict[str, Any]:
    """The record that the build wrote; empty if there is none."""
    try:
        return json.loads(_RECORD.read_text())
    except (OSError, ValueError):
        return {}


def threads() -> int:
    """The number of threads of a native call: torch's number, and 1 in a forked process.

    OpenMP's threads, which torch shares, do not survive a fork, and a team that waits for them would wait for ever.
    """
    return 1 if _forked else torch.get_num_threads()


_forked = False


def _after_fork() -> None:
    """One thread, for torch's own operators too (DataLoader does this in its workers): they share the lost team."""
    global _forked
    _forked = True
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def dtype_code(dtype: torch.dtype) -> int:
    """The native code's number for a dtype that it knows."""
    return _dtype_codes()[dtype]


def stream_of(tensor: Tensor) -> tuple[int, int]:
    """(device index, address of the current stream) for a launch on a CUDA tensor's device."""
    index = tensor.device.index
    return index, torch.cuda.current_stream(index).cuda_stream


def on_cpu() -> dict[str, int]:
    """The fields of a record for the place of a call on the CPU."""
    return {"threads": threads()}


def on_device(tensor: Tensor) -> dict[str, int]:
    """The fields of a record for the place of a launch for a CUDA tensor."""
    device, stream = stream_of(tensor)
    return {"device": device, "stream": stream}


def on_cuda(tensor: Tensor) -> dict[str, int]:
    """`on_device`, and the fields for the status word and the bits with which kernels flag bad values."""
    return {**on_device(tensor), "status": status.word(tensor.device).data_ptr(), **_STATUS_BITS}


def check_launch(op: str, code: int) -> None:
    """Raise RuntimeError naming the op if a launcher returned a CUDA error code."""
    if code:
        raise RuntimeError(f"{op}: CUDA error {code}: {module().cuda_error_string(code)}")


@functools.cache
def _dtype_codes() -> dict[torch.dtype, int]:
    return {getattr(torch, name): code for name, code in module().DTYPES.items()}


@functools.cache
def _load() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module(_NAME), ""
    except ImportError as e:
        never_built = f"{_RECORD.parent} is a source folder that was never built (leave it, or pip install -e .)"
        reason = build_record().get("unavailable_reason") or (str(e) if _RECORD.exists() else never_built)
    warn(f"wcord_fast runs without its native module, slower: {reason}", RuntimeWarning)
    return None, reason


@functools.cache
def _cuda_unavailable_reason() -> str | None:
    native = module()
    if not native.with_cuda:
        return build_record().get("cuda_unavailable_reason") or "the native module was built without CUDA"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    out = torch.zeros(1, dtype=torch.int32, device="cuda")
    code = native.cuda_probe(native.Probe(out=out.data_ptr(), value=_PROBE, **on_device(out)))
    if code:
        return f"a one-element kernel failed on {out.device}: CUDA error {code}: {native.cuda_error_string(code)}"
    return None if int(out.item()) == _PROBE else f"a one-element kernel left no result on {out.device}"
