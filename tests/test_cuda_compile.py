"""The report of ptxas on every kernel for sm_80 and sm_90: no stack, no spills, all within budget."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from .cuda_on_cpu import build

NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
BUDGETED = "13.0"  # the release of nvcc that the budgets below are for; other releases are reported
MAX_REGISTERS = 48  # 5 blocks of 256 threads on an SM of 64 K registers
LARGER = {
    # Rows in flight and both directions' gradients live in registers: 2 blocks of 256 threads, 1 for D = 256.
    "gather_rows_kernel.*Li(64|128)E": 128,
    "gather_rows_kernel.*Li256E": 168,
    "gather_general_kernel": 80,  # 3 blocks
    # One block of 512 for each anchor and direction; eight splits are on the way at once.
    "(gather|critic)_finish_kernel": 64,
    "step_finish_kernel": 64,  # 8 blocks of 128; fp64 rows take two registers a number
    "spectral_iterate_kernel": 64,  # one block of 1,024
    # One block of 512 threads per SM, because of its shared memory; rows of exponentials live in registers.
    "sinkhorn_kernel": 128,
}

pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc was not found")

USAGE = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def usage(source: Path, arch: str, folder: Path) -> list[dict[str, str]]:
    """One record per kernel. Run in an empty folder: nvcc would take a cuda_runtime.h beside it for its own."""
    command = [
        NVCC,
        "-std=c++17",
        "-O3",
        f"-arch={arch}",
        "-cubin",
        "-Xptxas",
        "-v",
        "-o",
        "out.cubin",
        str(source),
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [m.groupdict() for m in USAGE.finditer(done.stderr)]


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("source", sorted((build.CSRC / "cuda").glob("*.cu")), ids=lambda p: p.name)
def test_kernels_fit(source, arch, tmp_path):
    kernels = usage(source, arch, tmp_path)
    assert len(kernels) >= 1
    problems = []
    for kernel in kernels:
        if (kernel["stack"], kernel["stores"], kernel["loads"]) != ("0", "0", "0"):
            problems.append(f"spills: {kernel}")
        budget = next((most for name, most in LARGER.items() if re.search(name, kernel["name"])), MAX_REGISTERS)
        if int(kernel["registers"]) > budget:
            problems.append(f"more than {budget} registers: {kernel}")
        assert "smem" not in kernel["rest"], f"static shared memory: {kernel}"
    release = re.search(r"release ([\d.]+)", subprocess.run([NVCC, "--version"], capture_output=True, text=True).stdout)
    if problems and release and release[1] != BUDGETED:
        pytest.skip(f"nvcc {release[1]}, reported and not judged: {'; '.join(problems)}")
    assert not problems, "\n".join(problems)


def test_the_emulation_speaks_cuda(tmp_path):
    names = [kernel["name"] for kernel in usage(build.HERE / "selftest.cu", "sm_90", tmp_path)]
    assert any("grid_kernel" in name for name in names)  # group_sync included
