"""Whether the Triton kernels can run here, without importing triton before it is needed.

`import wcord_fast` must work, and stay quick, on machines that have no triton and no GPU.
"""

from __future__ import annotations

import functools
import importlib.util
import os

import torch

MIN_CAPABILITY = (8, 0)  # bf16 tensor cores


def unavailable_reason(device: str) -> str | None:
    """The reason why the Triton kernels cannot run on a kind of device ("cpu", "cuda") here, or None if they can.

    Under TRITON_INTERPRET=1 (set before triton is imported) they are interpreted on the CPU, for tests.
    """
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (torch's CUDA builds for Linux bring it)"
    if interpreted():
        return None if device == "cpu" else f"under TRITON_INTERPRET=1 Triton runs on the CPU only, not on {device}"
    if device != "cuda":
        return f"Triton has no code for {device} (TRITON_INTERPRET=1 interprets the kernels, for tests)"
    return _cuda_unavailable_reason()


def interpreted() -> bool:
    """Whether kernels are interpreted in place of compiled, by triton's own rule."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


@functools.cache
def _cuda_unavailable_reason() -> str | None:
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if torch.version.hip:
        return "the Triton kernels are written and checked for NVIDIA devices only"
    have = torch.cuda.get_device_capability()
    if have < MIN_CAPABILITY:
        return f"{torch.cuda.get_device_name()} has compute capability {have[0]}.{have[1]}; 8.0 is the least"
    return None
