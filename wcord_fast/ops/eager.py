"""Whether PyTorch's operators run as they are called. A call may then bypass `torch.library` and enter native code."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def eager() -> bool:
    """False while something records, transforms or replaces operators: a compiler, a tracer, a mode of torch."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
    )


PLAIN = (Tensor, nn.Parameter)


def calls_directly(*tensors: Tensor) -> bool:
    """Whether an op of ours on these tensors may bypass `torch.library`.

    It may not where `torch.library` has an effect: under autocast, for views with a lazy minus sign, and on meta.
    """
    if not eager() or torch._C._is_any_autocast_enabled():
        return False
    return not [t for t in tensors if type(t) not in PLAIN or t.is_meta or t.is_neg()]
