"""The precision of fp32 products in the Triton kernels, which the user's switches for matrix products decide."""

from __future__ import annotations

import os

import torch

from . import checks

LEVELS = ("highest", "high", "medium")
_BY_NAME = {"tf32": "high", "bf16": "medium"}  # of torch.backends.cuda.matmul.fp32_precision; all others: highest


def matmul_precision() -> str:
    """ "highest" (fp32's accuracy), "high" or "medium".

    WCORD_FAST_MATMUL_PRECISION decides where it is set, for our kernels alone. Else torch's own switch does:
    `torch.set_float32_matmul_precision`, of which `torch.backends.cuda.matmul.allow_tf32 = True` makes "high", or
    `torch.backends.cuda.matmul.fp32_precision`, after which torch refuses to say what the former is.
    """
    own = os.environ.get("WCORD_FAST_MATMUL_PRECISION")
    if own:
        return checks.choice("WCORD_FAST_MATMUL_PRECISION", own, LEVELS)
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return _BY_NAME.get(torch.backends.cuda.matmul.fp32_precision, "highest")
