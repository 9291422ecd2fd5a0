"""Triton kernels as they are launched, compiled for devices that are not there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from wcord_fast.ops.bank import triton_critics, triton_kernels, triton_launch
from wcord_fast.ops.contrast import triton as contrast
from wcord_fast.ops.contrast import triton_kernels as contrast_kernels

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
POINTERS = {
    "terms_ptr": "*bf16",
    "index_ptr": "*i64",
    "label_ptr": "*i32",
    "class_start_ptr": "*i32",
    "status_ptr": "*i32",
}
IDS = ("label_ptr", "row_label_ptr", "index_ptr", "row_index_ptr")  # of the kernels of ops/contrast


def compiled(kernel, types: dict, constants: dict, capability: int, options: dict, aligned: Sequence[str] = ()):
    """Triton's result for one choice of types and constants.

    Args:
        kernel: a `triton.jit` function.
        types: argument name -> "*fp32", "i32", ...; pointers count as 16-byte aligned.
        constants: name -> value of the constexpr arguments.
        capability: 80 or 90.
        options: of the launch.
        aligned: the integers that count as multiples of 16.
    """
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    assert set(types) | set(constants) == set(signature), set(types) ^ set(constants) ^ set(signature)
    divisible = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or name in aligned
    }
    source = ASTSource(kernel, signature, constexprs=constants, attrs=divisible)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@dataclass(frozen=True)
class Specialisation:
    """A kernel with its arguments' types, its constants and tiles; the integers `aligned` are multiples of 16."""

    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    tiles: triton_launch.Blocks
    aligned: tuple[str, ...]

    def compile(self, capability: int):
        """Triton's result for a device of that compute capability."""
        options = {"num_warps": self.tiles.warps, "num_stages": self.tiles.stages}
        return compiled(self.kernel, self.types, self.constants, capability, options, self.aligned)


def bank_walk(
    capability: int, kernel: str, member: str, bank: str, dim: int, batch: int, limit: int = 3
) -> Specialisation:
    """A pass over a bank or a batch, as launched for such tensors.

    Args:
        capability: 80, 90, ..
        kernel: of ops/bank/triton_kernels.py or ops/contrast/triton_kernels.py, without "_fwd_kernel"; "critic" or
            "sigmoid": that of triton_critics.py, for InfoNCE or the sigmoid loss.
        member: "mask", "counts" (int16), "wide counts" (int32) or a pool; of ops/contrast the critic, with labels,
            indices and both directions.
        bank: "fp32", "bf16" or "fp16"; the anchors are fp32.
        limit: bf16 terms of an fp32 factor.
    """
    of_batches = kernel in ("values", "gradients")
    modules = (contrast_kernels,) if of_batches else (triton_kernels, triton_critics)
    function_name = f"{'critic' if kernel == 'sigmoid' else kernel}_fwd_kernel"
    function = next(vars(m)[function_name] for m in modules if function_name in vars(m))
    counts = member.endswith("counts")
    m_terms = min(triton_launch.DTYPE_TERMS[DTYPES[bank]], limit)
    tiles = triton_launch.blocks(capability // 10, dim, batch, m_terms, counts)
    constants = {
        "D": dim,
        "BLOCK_D": min(triton_launch.BLOCK_D, triton_launch.padded(dim)),
        "STRIDE_UNIT": math.gcd(dim, 16),
        "BLOCK_B": tiles.block_b,
        "BLOCK_N": tiles.block_n,
        "MEMBER": "counts" if counts else member,
        "CHARGE": "drawn" if counts or member == "mask" else "expected",
        "NEEDS_GRAD": True,
        "ONLY_UNSET": True,
        "EPS": 1e-7,
        "SOFTMAX": member == "infonce" or kernel == "critic",
        **dict.fromkeys(("HAS_FIRST", "HAS_LABEL", "HAS_INDEX", "HAS_ROW_WEIGHT"), True),
        "X_TERMS": limit,
        "M_TERMS": m_terms,
        "W_TERMS": min(contrast.W_TERMS, limit),
        "LIMIT": limit,
        "INTERPRET": False,
    }
    types = POINTERS | {"bank0_ptr": f"*{bank}", "bank1_ptr": f"*{bank}", "rows_ptr": f"*{bank}", "temperature": "fp32"}
    types |= {"member_ptr": "*i16" if member == "counts" else "*i32"}
    types |= dict.fromkeys(IDS, "*i64") if of_batches else {}
    rest = [name for name in function.arg_names if name not in constants]
    return Specialisation(
        function,
        {name: types.get(name, "*fp32" if name.endswith("_ptr") else "i32") for name in rest},
        {name: value for name, value in constants.items() if name in function.arg_names},
        tiles,
        ("split_rows",) if dim % 16 else ("bank_stride", "row_stride", "split_rows"),
    )
