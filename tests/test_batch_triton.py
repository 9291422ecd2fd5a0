"""The Triton kernels of the batch's contrast without a GPU: interpreted, and compiled for sm_80 and sm_90."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

import wcord_fast
from wcord_fast.ops import dispatch
from wcord_fast.ops.contrast import op

from .test_bank_triton import SHARED_LIMIT, compiled, needs_triton, run
from .triton_release import judge, not_interpreted_reason

CASES = [
    {"kernel": kernel, "member": critic, "bank": dtype, "dim": dim, "batch": batch}
    for kernel, critic, dtype, dim, batch in (
        ("gradients", "infonce", "fp32", 128, 1024),
        ("gradients", "infonce", "fp32", 128, 64),
        ("gradients", "sigmoid", "fp32", 128, 64),
        ("gradients", "infonce", "bf16", 128, 1024),
        ("gradients", "infonce", "bf16", 128, 64),
        ("gradients", "sigmoid", "fp32", 200, 1024),
        ("values", "infonce", "bf16", 128, 1024),
        ("values", "sigmoid", "fp32", 128, 1024),
    )
]


@pytest.mark.slow
@pytest.mark.skipif(not_interpreted_reason() is not None, reason=str(not_interpreted_reason()))
def test_interpreted_kernels_equal_the_reference():
    check = str(Path("tests", "triton_interpret", "check_batch.py"))
    done = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", check], TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED_LIMIT)
def test_kernels_compile_without_a_spill(capability, tmp_path):
    judge(compiled(capability, CASES, tmp_path))


def test_choice_of_the_backend_on_cuda(monkeypatch):
    monkeypatch.setattr(dispatch, "cannot_run", lambda backend, device: None)
    narrow = (torch.float32, torch.bfloat16, torch.float16)
    assert all(op.choose("cuda", d, 9, "auto").backend == "triton" for d in itertools.product(narrow, repeat=2))
    wide = op.choose("cuda", (torch.float32, torch.float64), 9, "auto")
    assert wide.backend == "reference" and "got torch.float64" in wide.reason
    assert op.choose("cuda", narrow, 2**31, "auto").backend == "reference"
    with pytest.raises(NotImplementedError, match=r"take float32, bfloat16 and float16, got torch.float64"):
        op.choose("cuda", (torch.float64,), 9, "triton")
    assert wcord_fast.explain("batch_infonce", device="cuda").backend == "triton"
    assert wcord_fast.explain("batch_infonce", device="cuda", dtype=torch.float64).backend == "reference"
