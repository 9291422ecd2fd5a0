"""Compile a Triton kernel for a device that is not there, and ask ptxas what it needs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

USAGE = re.compile(
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def usage(kernel, types: dict, constants: dict, *, capability: int, warps: int, stages: int, folder: Path) -> dict:
    """Stack, spills, registers and shared memory (bytes) of one specialisation.

    Args:
        kernel: a `triton.jit` function.
        types: argument name -> "*fp32", "i32", ...; pointers count as 16-byte aligned.
        constants: name -> value of the constexpr arguments.
        capability: 80 or 90.
        folder: where the PTX may be written.
    """
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    assert set(types) | set(constants) == set(signature), set(types) ^ set(constants) ^ set(signature)
    aligned = {(i,): [["tt.divisibility", 16]] for i, t in enumerate(signature.values()) if t.startswith("*")}
    source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": warps, "num_stages": stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = folder / "kernel.ptx"
    ptx.write_text(compiled.asm["ptx"])
    arch = re.search(r"\.target (\w+)", compiled.asm["ptx"])
    assert arch
    command = [triton.knobs.nvidia.ptxas.path, "-v", f"-arch={arch[1]}", str(ptx), "-o", str(folder / "kernel.cubin")]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    found = USAGE.search(told)
    assert found, told
    return {**{k: int(v) for k, v in found.groupdict().items()}, "shared": compiled.metadata.shared}
