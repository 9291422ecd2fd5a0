"""Whether PyTorch's operators run as they are called: then a call may pass `torch.library` by and enter native code."""

from __future__ import annotations

import torch


def eager() -> bool:
    """False while something records, transforms or replaces operators: a compiler, a tracer, a mode of torch."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
    )
