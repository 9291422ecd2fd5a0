"""The Triton kernels of the bank ops without a GPU: interpreted, and compiled for sm_80, sm_90, sm_100 and sm_120.

Each in a process of its own: triton reads TRITON_INTERPRET once, when it is imported.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import wcord_fast
from wcord_fast.ops import dispatch

from .triton_release import judge, not_interpreted_reason

ROOT = Path(__file__).resolve().parent.parent
# Bytes a block; 99 KB is what sm_86 and sm_89 have of the sm_80 table.
SHARED_LIMIT = {80: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
TENSOR_LIMIT = 512  # columns of tensor memory of a multiprocessor (sm_100)
HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")

# The rows of `triton_launch.blocks` at their largest tiles, and the other two kernels once.
CASES = [
    {"capability": 80, "kernel": "nce", "member": "mask", "bank": "bf16", "dim": 128, "batch": 64},
    {"capability": 80, "kernel": "nce", "member": "counts", "bank": "bf16", "dim": 128, "batch": 64},
    {"capability": 80, "kernel": "nce", "member": "counts", "bank": "fp32", "dim": 128, "batch": 64},
    {"capability": 80, "kernel": "nce", "member": "counts", "bank": "fp32", "dim": 200, "batch": 64},
    {"capability": 90, "kernel": "nce", "member": "mask", "bank": "bf16", "dim": 128, "batch": 64},
    {"capability": 90, "kernel": "nce", "member": "class", "bank": "bf16", "dim": 128, "batch": 256},
    {"capability": 90, "kernel": "nce", "member": "counts", "bank": "bf16", "dim": 128, "batch": 64},
    {"capability": 90, "kernel": "nce", "member": "mask", "bank": "fp32", "dim": 128, "batch": 256},
    {"capability": 90, "kernel": "nce", "member": "class", "bank": "fp32", "dim": 128, "batch": 64},
    {"capability": 90, "kernel": "critic", "member": "class", "bank": "fp32", "dim": 128, "batch": 64},
    {"capability": 90, "kernel": "nce", "member": "counts", "bank": "fp32", "dim": 128, "batch": 64},
    {"capability": 90, "kernel": "nce", "member": "counts", "bank": "fp32", "dim": 200, "batch": 64},
    {"capability": 90, "kernel": "mean", "member": "counts", "bank": "fp32", "dim": 128, "batch": 256},
    {"capability": 90, "kernel": "log_z", "member": "mask", "bank": "fp32", "dim": 128, "batch": 256},
    {"capability": 80, "kernel": "critic", "member": "mask", "bank": "bf16", "dim": 128, "batch": 64},
    {"capability": 80, "kernel": "critic", "member": "counts", "bank": "fp32", "dim": 128, "batch": 64},
    {"capability": 90, "kernel": "critic", "member": "mask", "bank": "bf16", "dim": 128, "batch": 256},
    {"capability": 90, "kernel": "critic", "member": "mask", "bank": "fp32", "dim": 128, "batch": 256},
    *(
        {"capability": capability, "kernel": kernel, "member": member, "bank": bank, "dim": 128, "batch": 64}
        for capability, kernel, member, bank in (
            (90, "critic", "wide counts", "bf16"),
            (90, "sigmoid", "wide counts", "bf16"),
            (90, "sigmoid", "wide counts", "fp32"),
            (100, "nce", "counts", "bf16"),
            (100, "sigmoid", "wide counts", "fp32"),
            (100, "critic", "mask", "bf16"),
            (100, "sigmoid", "mask", "bf16"),
            (120, "nce", "wide counts", "bf16"),
            (120, "sigmoid", "wide counts", "fp32"),
            (120, "sigmoid", "mask", "bf16"),
            (120, "nce", "mask", "fp32"),
        )
    ),
    {"capability": 100, "kernel": "nce", "member": "mask", "bank": "fp32", "dim": 128, "batch": 256},
    {"capability": 100, "kernel": "mean", "member": "counts", "bank": "fp32", "dim": 128, "batch": 256},
    {"capability": 100, "kernel": "sigmoid", "member": "mask", "bank": "bf16", "dim": 128, "batch": 256},
]


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
    )


def records(cases: list[dict], cache: Path) -> list[dict]:
    """What tests/triton_compile.py reports of each case: one process for all of them, since its imports cost more."""
    done = run(["-m", "tests.triton_compile", json.dumps(cases)], TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(cache))
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(cases)
    return results


def compiled(capability: int, cases: list[dict], cache: Path) -> list[str]:
    """The spilling kernels of tests/triton_compile.py. Each must fit in the shared memory of a block."""
    spilled = []
    for result in records([{"capability": capability} | case for case in cases], cache):
        # Else it cannot be launched; where tensor memory does not suffice, Triton makes a kernel that traps.
        assert result["shared"] <= SHARED_LIMIT[capability], result
        assert result["per_sm"] * result["tensor"] <= TENSOR_LIMIT, result
        assert result["merged"] == 0, result  # lanes that store one sum have equal bits
        if worst := max(result["stack"], result["stores"], result["loads"]):
            spilled.append(f"{worst} bytes spilled: {result}")
    return spilled


def test_unavailable_triton_gives_its_reason():
    why = dispatch.cannot_run("triton", "cpu")
    assert why is not None and ("no code for cpu" in why if HAS_TRITON else "not installed" in why)
    assert wcord_fast.explain("bank_nce", plan="dense", device="cpu").backend != "triton"


@pytest.mark.slow
@pytest.mark.skipif(not_interpreted_reason() is not None, reason=str(not_interpreted_reason()))
def test_interpreted_kernels_equal_the_reference():
    """Of tests/triton_interpret, check_bank.py and check_bank_critics.py."""
    files = [str(Path("tests", "triton_interpret", name)) for name in ("check_bank.py", "check_bank_critics.py")]
    done = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", *files], TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED_LIMIT)
def test_kernels_compile_without_a_spill(capability, tmp_path):
    cases = [case for case in CASES if case["capability"] == capability]
    judge(compiled(capability, cases, tmp_path))


WIDTHS = {("bf16", 24): 16, ("fp32", 20): 16, ("bf16", 20): 8, ("fp32", 18): 8}  # of a copy, for a bank and D
READ = [
    {"capability": 90, "kernel": "nce", "member": "class", "batch": 64, "bank": bank, "dim": dim}
    for bank, dim in WIDTHS
]
FINISHED = [
    {"capability": capability} | options for capability in SHARED_LIMIT for options in ({}, {"enable_fp_fusion": True})
]


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """What is reported of READ and FINISHED."""
    return records([*READ, *FINISHED], tmp_path_factory.mktemp("triton"))


@needs_triton
def test_rows_that_are_no_multiple_of_16_are_read_by_vectors(reported):
    """As wide as the distance of two rows allows: 16 bytes, if it is a multiple of 8 halves or 4 floats."""
    assert [max(result["copies"]) for result in reported[: len(READ)]] == list(WIDTHS.values())


@needs_triton
def test_lanes_that_store_one_sum_have_equal_bits(reported):
    """A product that is merged into a sum over lanes rounds another factor in each lane."""
    for case, result in zip(FINISHED, reported[len(READ) :], strict=True):
        assert result["fused"] == 0 or "enable_fp_fusion" in case, case
    assert any(result["fused"] for result in reported[len(READ) :])  # where fusion is on and the release fuses


SPECIALISED = """
import sys
import wcord_fast.ops.bank.triton
print('triton' in sys.modules)
from wcord_fast.ops.bank import triton_anchor, triton_critics, triton_kernels
from wcord_fast.ops.contrast import triton_kernels as contrast
for module in (triton_anchor, triton_critics, triton_kernels, contrast):
    for name, kernel in vars(module).items():
        if name.endswith("_kernel"):
            print(*(p.name for p in kernel.params if not p.is_constexpr and not p.do_not_specialize))
"""


@needs_triton
def test_rows_too_far_apart_for_the_kernels_are_copied():
    from wcord_fast.ops.bank.triton_launch import MAX_STRIDE, by_rows

    def strides(row, column):
        return by_rows(torch.empty_strided((70, 8), (row, column), device="meta")).stride()

    assert 63 * MAX_STRIDE + 4096 < 2**31  # offsets within a tile of 64 rows are int32
    assert strides(MAX_STRIDE, 1) == (MAX_STRIDE, 1)
    assert strides(MAX_STRIDE + 1, 1) == strides(16, 2) == (8, 1)


@pytest.fixture(scope="module")
def specialised():
    """The lines that SPECIALISED prints."""
    done = run(["-c", SPECIALISED], TRITON_INTERPRET="0")
    assert done.stdout and (done.returncode == 0 or not HAS_TRITON), done.stderr
    return done.stdout.splitlines()


def test_importing_the_package_does_not_import_triton(specialised):
    assert specialised[0] == "False"


@needs_triton
def test_another_batch_size_does_not_recompile(specialised):
    names = {name for line in specialised[1:] for name in line.split()}
    assert {n for n in names if not n.endswith(("_ptr", "_stride"))} == {"plane", "split_rows", "temperature"}
