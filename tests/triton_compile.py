"""Compiles Triton kernels for an absent GPU and prints the report of ptxas on each, one JSON line per case.

Run as `python -m tests.triton_compile CASES`, CASES a JSON list of what `usage` or `fused` takes, in a process of its
own: with TRITON_INTERPRET=1 there is nothing to compile.
"""

from __future__ import annotations

import json
import math
import sys

import torch

from tests import triton_ptxas
from wcord_fast.ops.bank import triton_anchor, triton_critics, triton_kernels, triton_launch
from wcord_fast.ops.contrast import triton as contrast
from wcord_fast.ops.contrast import triton_kernels as contrast_kernels

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
POINTERS = {
    "terms_ptr": "*bf16",
    "index_ptr": "*i64",
    "member_ptr": "*i32",
    "label_ptr": "*i32",
    "class_start_ptr": "*i32",
    "status_ptr": "*i32",
}
IDS = ("label_ptr", "row_label_ptr", "index_ptr", "row_index_ptr")  # of the kernels of ops/contrast


def usage(capability: int, kernel: str, member: str, bank: str, dim: int, batch: int, limit: int = 3) -> dict:
    """What `triton_ptxas.usage` reports about a kernel as launched for such tensors.

    Args:
        capability: 80, 90, ..
        kernel: of ops/bank/triton_kernels.py, triton_critics.py (InfoNCE) or ops/contrast/triton_kernels.py, without
            "_fwd_kernel".
        member: "mask", "counts" or a pool; of ops/contrast the critic, with labels, indices and both directions.
        bank: "fp32", "bf16" or "fp16"; the anchors are fp32.
        limit: bf16 terms of an fp32 factor.
    """
    of_batches = kernel in ("values", "gradients")
    modules = (contrast_kernels,) if of_batches else (triton_kernels, triton_critics)
    function = next(vars(m)[name] for m in modules if (name := f"{kernel}_fwd_kernel") in vars(m))
    m_terms = min(triton_launch.DTYPE_TERMS[DTYPES[bank]], limit)
    tiles = triton_launch.blocks(capability // 10, dim, batch, m_terms, member == "counts")
    constants = {
        "D": dim,
        "BLOCK_D": min(triton_launch.BLOCK_D, triton_launch.padded(dim)),
        "STRIDE_UNIT": math.gcd(dim, 16),
        "BLOCK_B": tiles.block_b,
        "BLOCK_N": tiles.block_n,
        "MEMBER": member,
        "CHARGE": "drawn" if member in ("mask", "counts") else "expected",
        "NEEDS_GRAD": True,
        "ONLY_UNSET": True,
        "EPS": 1e-7,
        "SOFTMAX": member == "infonce" or kernel == "critic",
        **dict.fromkeys(("HAS_FIRST", "HAS_LABEL", "HAS_INDEX", "HAS_ROW_WEIGHT"), True),
        "X_TERMS": limit,
        "M_TERMS": m_terms,
        "W_TERMS": 3 if kernel == "mean" else min(contrast.W_TERMS, limit),
        "LIMIT": limit,
        "INTERPRET": False,
    }
    types = POINTERS | {"bank0_ptr": f"*{bank}", "bank1_ptr": f"*{bank}", "rows_ptr": f"*{bank}", "temperature": "fp32"}
    types |= dict.fromkeys(IDS, "*i64") if of_batches else {}
    rest = [name for name in function.arg_names if name not in constants]
    return triton_ptxas.usage(
        function,
        {name: types.get(name, "*fp32" if name.endswith("_ptr") else "i32") for name in rest},
        {name: value for name, value in constants.items() if name in function.arg_names},
        capability=capability,
        warps=tiles.warps,
        stages=tiles.stages,
        aligned=("split_rows",) if dim % 16 else ("bank_stride", "row_stride", "split_rows"),
    )


def fused(capability: int, **options) -> dict:
    """How many fused multiply-adds the kernel that finishes the mean score has: none, with the launch's own options."""
    constants = {"D": 128, "DP": 128, "BLOCK": 16, "NEEDS_GRAD": True, "INDEX_BIT": 1, "ANCHOR_BIT": 2}
    names = [name for name in triton_anchor.mean_finish_kernel.arg_names if name not in constants]
    types = {name: POINTERS.get(name, "*fp32" if name.endswith("_ptr") else "i32") for name in names}
    options = triton_launch.FINISH_OPTIONS | options
    result = triton_ptxas.compiled(triton_anchor.mean_finish_kernel, types, constants, capability, options)
    return {"fused": result.asm["ptx"].count("fma.rn.f32")}


if __name__ == "__main__":
    for case in json.loads(sys.argv[1]):
        print(json.dumps({**case, **(usage if "kernel" in case else fused)(**case)}), flush=True)
