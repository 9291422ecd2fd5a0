"""Compiles Triton kernels for a GPU that is not there and prints what ptxas says of each, one JSON line per case.

Run as `python -m tests.triton_compile CASES`, CASES a JSON list of what `usage` takes, in a process of its own: with
TRITON_INTERPRET=1 there is nothing to compile.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from wcord_fast.ops.bank import triton_kernels, triton_launch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
POINTERS = {
    "terms_ptr": "*bf16",
    "index_ptr": "*i64",
    "member_ptr": "*i32",
    "label_ptr": "*i32",
    "class_start_ptr": "*i32",
}
PTXAS = re.compile(
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def usage(capability: int, kernel: str, member: str, bank: str, dim: int, batch: int, limit: int = 3) -> dict:
    """Stack, spills, registers and shared memory (bytes) of a kernel as launched for such tensors.

    Args:
        capability: 80, 90, ..
        kernel: of triton_kernels.py, without "_fwd_kernel".
        member: "mask", "counts" or a pool.
        bank: "fp32", "bf16" or "fp16"; the anchors are fp32.
        limit: bf16 terms of an fp32 factor.
    """
    function = getattr(triton_kernels, f"{kernel}_fwd_kernel")
    m_terms = min(triton_launch.DTYPE_TERMS[DTYPES[bank]], limit)
    tiles = triton_launch.blocks(capability // 10, dim, batch, m_terms, member == "counts")
    constants = {
        "D": dim,
        "BLOCK_D": min(triton_launch.BLOCK_D, triton_launch.padded(dim)),
        "BLOCK_B": tiles.block_b,
        "BLOCK_N": tiles.block_n,
        "MEMBER": member,
        "CHARGE": "drawn" if member in ("mask", "counts") else "expected",
        "NEEDS_GRAD": True,
        "ONLY_UNSET": True,
        "EPS": 1e-7,
        "X_TERMS": limit,
        "M_TERMS": m_terms,
        "W_TERMS": 3 if kernel == "mean" else min(2, limit),
        "LIMIT": limit,
        "INTERPRET": False,
    }
    types = POINTERS | {"bank0_ptr": f"*{bank}", "bank1_ptr": f"*{bank}"}
    signature, attributes = {}, {}
    for i, name in enumerate(function.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        default = "*fp32" if name.endswith("_ptr") else "fp32" if name == "temperature" else "i32"
        signature[name] = types.get(name, default)
        if signature[name].startswith("*") or name in ("bank_stride", "split_rows"):
            attributes[(i,)] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        ASTSource(function, signature, {k: v for k, v in constants.items() if k in signature}, attributes),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": tiles.warps, "num_stages": tiles.stages},
    )
    tools = triton.knobs.nvidia
    ptxas = tools.ptxas_blackwell if capability >= 100 else tools.ptxas
    return {**_report(ptxas.path, compiled.asm["ptx"]), "shared": compiled.metadata.shared}


def _report(ptxas: str, ptx: str) -> dict[str, int]:
    arch = re.search(r"\.target (\w+)", ptx)
    assert arch is not None
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        command = [ptxas, "-v", f"-arch={arch[1]}", str(source), "-o", f"{folder}/cubin"]
        done = subprocess.run(command, capture_output=True, text=True)
    found = PTXAS.search(done.stderr)
    assert found is not None, done.stderr
    return {key: int(value) for key, value in found.groupdict().items()}


if __name__ == "__main__":
    for case in json.loads(sys.argv[1]):
        print(json.dumps({**case, **usage(**case)}), flush=True)
