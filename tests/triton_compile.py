"""Compiles Triton kernels for an absent GPU and prints the report of ptxas on each, one JSON line per case.

Run as `python -m tests.triton_compile CASES`, CASES a JSON list of what `usage` or `fused` takes, in a process of its
own: with TRITON_INTERPRET=1 there is nothing to compile.
"""

from __future__ import annotations

import json
import sys

from bench.triton_code import POINTERS, bank_walk, compiled
from tests import triton_ptxas
from wcord_fast.ops.bank import triton_anchor, triton_launch


def usage(capability: int, **case) -> dict:
    """What `triton_ptxas.usage` reports about a kernel; arguments as for `bank_walk`."""
    walk = bank_walk(capability, **case)
    used = triton_ptxas.usage(
        walk.kernel,
        walk.types,
        walk.constants,
        capability=capability,
        warps=walk.tiles.warps,
        stages=walk.tiles.stages,
        aligned=walk.aligned,
    )
    return {**used, "per_sm": walk.tiles.per_sm}


def fused(capability: int, **options) -> dict:
    """How many fused multiply-adds the kernel that finishes the mean score has: none, with the launch's own options."""
    constants = {"D": 128, "DP": 128, "BLOCK": 16, "NEEDS_GRAD": True, "INDEX_BIT": 1, "ANCHOR_BIT": 2}
    names = [name for name in triton_anchor.mean_finish_kernel.arg_names if name not in constants]
    types = {name: POINTERS.get(name, "*fp32" if name.endswith("_ptr") else "i32") for name in names}
    options = triton_launch.FINISH_OPTIONS | options
    result = compiled(triton_anchor.mean_finish_kernel, types, constants, capability, options)
    return {"fused": result.asm["ptx"].count("fma.rn.f32")}


if __name__ == "__main__":
    for case in json.loads(sys.argv[1]):
        print(json.dumps({**case, **(usage if "kernel" in case else fused)(**case)}), flush=True)
