"""Compile a Triton kernel for an absent device, and read its needs from ptxas."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from triton.backends.nvidia.compiler import get_ptxas

from bench.triton_code import compiled

USAGE = (
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads",
    r"Used (?P<registers>\d+) registers",
)
COPY = re.compile(r"cp\.async\.c[ag]\.shared\.global[^;]*?\], (0x\w+)")

SHUFFLED = re.compile(r"shfl\.sync\.\S+\s+(%\w+)")
ADDEND = re.compile(r"fma\.rn\.f32\s+[^,]+,[^,]+,[^,]+,\s*(%\w+);")


def merged(ptx: str) -> int:
    """Multiply-adds onto a number of another lane: a product that the compiler merged into a sum over lanes.

    Each lane then rounds another product. Where all of them store the sum, its bits depend on which store comes last.
    """
    shuffled = set(SHUFFLED.findall(ptx))
    return sum(addend in shuffled for addend in ADDEND.findall(ptx))


def usage(
    kernel, types: dict, constants: dict, *, capability: int, warps: int, stages: int, aligned: Sequence[str] = ()
) -> dict[str, Any]:
    """Stack, spills, registers, shared memory and the widths of the copies to it (bytes), columns of tensor memory, and
    the number of `merged` products.

    Arguments as for `compiled`.
    """
    options = {"num_warps": warps, "num_stages": stages}
    result = compiled(kernel, types, constants, capability, options, aligned)
    arch = re.search(r"\.target (\w+)", result.asm["ptx"])
    assert arch
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder, "kernel.ptx")
        ptx.write_text(result.asm["ptx"])
        # The assembler that Triton itself takes for the device: which of its two it is depends on the release.
        command = [get_ptxas(capability).path, "-v", f"-arch={arch[1]}", str(ptx), "-o", f"{folder}/kernel.cubin"]
        text = subprocess.run(command, capture_output=True, text=True).stderr
    reports = [m.groupdict() for pattern in USAGE for m in re.finditer(pattern, text)]
    # The kernel may have functions of its own (sm_100): the worst of all.
    names = ("stack", "stores", "loads", "registers")
    numbers = {name: max(int(r[name]) for r in reports if name in r) for name in names}
    copies = {int(size, 16) for size in COPY.findall(result.asm["ptx"])}
    tensor = getattr(result.metadata, "tmem_size", None) or 0
    return {
        **numbers,
        "shared": result.metadata.shared,
        "tensor": tensor,
        "copies": sorted(copies),
        "merged": merged(result.asm["ptx"]),
    }
