"""What every kernel takes: no stack, no spills, no static shared memory; on sm_80 and sm_90 registers within budget."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bench.machine_code import resources, tool

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

LATER = ("sm_100", "sm_120")  # where what an install has built is read, and made is only what spilled there once:
SPILLED = (("sinkhorn.cu", "sm_100"), ("sinkhorn_resident.cu", "sm_100"), ("sinkhorn_resident.cu", "sm_120"))
SYSTEM = 1 << 10  # bytes of shared memory that sm_90 and later keep for themselves

pytestmark = pytest.mark.skipif(
    NVCC is None or tool("cuobjdump") is None, reason="nvcc or cuobjdump was not found, which Triton's package has"
)


def compiled(source: Path, arch: str, folder: Path) -> Path:
    """The machine code of `source`. Made in an empty folder: nvcc would take a cuda_runtime.h beside it for its own."""
    result = folder / "out.cubin"
    command = [str(NVCC), "-std=c++17", "-O3", f"-arch={arch}", "-cubin", "-o", str(result), str(source)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return result


def built(source: Path, arch: str) -> Path | None:
    """The object that an install left in build/, if it has code for `arch` and is newer than all that it is made of."""
    for item in (build.CSRC.parent / "build").glob(f"native-*/cuda_{source.name}.o"):
        made_of = [Path(p) for p in item.with_suffix(".o.d").read_text().partition(":")[2].replace("\\\n", " ").split()]
        times = [path.stat().st_mtime if path.exists() else float("inf") for path in made_of]
        if source in made_of and max(times) < item.stat().st_mtime and resources(item, arch):
            return item
    return None


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", *LATER])
@pytest.mark.parametrize("source", sorted((build.CSRC / "cuda").glob("*.cu")), ids=lambda p: p.name)
def test_kernels_fit(source, arch, tmp_path):
    binary = built(source, arch)
    if binary is None:
        if arch in LATER and (source.name, arch) not in SPILLED:
            pytest.skip(f"no install has built {source.name} for {arch}")
        binary = compiled(source, arch, tmp_path)
    kernels = resources(binary, arch)
    assert len(kernels) >= 1
    problems = []
    for name, used in kernels.items():
        if used["stack"]:
            problems.append(f"{used['stack']} bytes of stack or spills: {name}")
        budget = next((most for pattern, most in LARGER.items() if re.search(pattern, name)), MAX_REGISTERS)
        if used["registers"] > budget and arch not in LATER:
            problems.append(f"{used['registers']} registers, more than {budget}: {name}")
        assert used["shared"] <= (0 if arch == "sm_80" else SYSTEM), f"static shared memory: {name}"
    release = re.search(r"release ([\d.]+)", subprocess.run([NVCC, "--version"], capture_output=True, text=True).stdout)
    if problems and release and release[1] != BUDGETED:
        pytest.skip(f"nvcc {release[1]}, reported and not judged: {'; '.join(problems)}")
    assert not problems, "\n".join(problems)


def test_an_object_that_is_older_than_a_header_is_made_again(tmp_path, monkeypatch):
    source, header, item = (tmp_path / name for name in ("csrc/k.cu", "csrc/k.h", "build/native-0/cuda_k.cu.o"))
    for path in (source, header, item):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (100, 100 + (path == item)))
    item.with_suffix(".o.d").write_text(f"{item.name} : {source} \\\n    {header}\n")
    monkeypatch.setattr(build, "CSRC", tmp_path / "csrc")
    monkeypatch.setattr(f"{__name__}.resources", lambda binary, arch: {"kernel": {}} if arch == "sm_90" else {})
    assert built(source, "sm_90") == item and built(source, "sm_80") is None
    os.utime(header, (102, 102))
    assert built(source, "sm_90") is None


def test_the_emulation_speaks_cuda(tmp_path):
    names = resources(compiled(build.HERE / "selftest.cu", "sm_90", tmp_path))
    assert any("grid_kernel" in name for name in names)  # group_sync included
