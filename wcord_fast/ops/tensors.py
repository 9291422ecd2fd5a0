"""Facts about tensors that several ops share: the dtype policy, the layout of native code, and counts of writes."""

from __future__ import annotations

import torch
from torch import Tensor


def wide_dtype() -> torch.dtype:
    """The default dtype, fp32 at the least: that of buffers whose values must not be rounded to a half type."""
    return torch.promote_types(torch.get_default_dtype(), torch.float32)


def accumulation_dtype(*inputs: Tensor | torch.dtype) -> torch.dtype:
    """fp64 if an input, a tensor or a dtype, is fp64; else fp32."""
    for value in inputs:
        if (value if isinstance(value, torch.dtype) else value.dtype) == torch.float64:
            return torch.float64
    return torch.float32


def contiguous(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` in `dtype`, contiguous; itself if it is so already."""
    return tensor if tensor.dtype is dtype and tensor.is_contiguous() else tensor.to(dtype).contiguous()


def count_write(tensor: Tensor) -> None:
    """Count a write that PyTorch has not seen."""
    if not tensor.is_inference():
        torch.autograd.graph.increment_version(tensor)


def write_count(tensor: Tensor) -> int | None:
    """The number of writes to `tensor`, or None for an inference tensor, for which torch keeps no count."""
    return None if tensor.is_inference() else tensor._version
