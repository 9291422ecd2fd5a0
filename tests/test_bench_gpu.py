"""bench.gpu's measurements, run on the CPU at tiny sizes: all of them but CUDA graphs and events."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from bench import gpu, gpu_bank, gpu_ot
from wcord_fast.ops import native_module

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(native_module.load() is None, reason="no native module")


def test_steps_of_every_form_are_right():
    rows = gpu_bank.step_rows(shapes=((4, 64, 1000),), device=CPU, dim=16)
    assert [(r["form"], r["bank"]) for r in rows] == [
        ("naive", "fp32"), ("plain", "fp32"), ("gather", "fp32"), ("gather", "bf16"), ("dense", "fp32"),
        ("dense", "bf16"), ("dense, all rows", "bf16"),
    ]  # fmt: skip
    for row in rows:
        assert "exit" not in row, row
        assert row["us"]["p50"] > 0 and row["eager_us"]["p20"] <= row["eager_us"]["p80"]
        assert row.get("right", True), row


def test_a_wrong_result_of_ours_is_a_failure(monkeypatch):
    monkeypatch.setitem(gpu_bank.LIMITS, "fp32", {"loss": 0.0, "grad": 0.0})
    monkeypatch.setattr(gpu_ot, "VALUE_LIMIT", 0.0)
    rows = gpu_bank.step_rows(shapes=((4, 64, 1000),), device=CPU, dim=16)
    assert [(r["form"], r["bank"]) for r in rows if gpu.fails(r)] == [("gather", "fp32"), ("dense", "fp32")]
    rows = gpu_ot.ot_rows(cases=[("ipot", 0.5, 20)], device=CPU, dim=16)
    assert [r["provider"] for r in rows if gpu.fails(r)] == ["ours"]
    assert gpu.fails({"part": "tests", "exit": 1}) and not gpu.fails({"part": "tests", "exit": 0})


def test_a_form_that_fails_is_a_row_of_its_own(monkeypatch):
    def broken(*_):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(gpu_bank.Plain, "step", broken)
    rows = gpu_bank.step_rows(shapes=((4, 64, 1000),), device=CPU, dim=16)
    assert [r["form"] for r in rows if r.get("exit")] == ["plain"]
    assert next(r for r in rows if r.get("exit"))["error"] == "RuntimeError: no such kernel"


def test_parts():
    rows = gpu_bank.part_rows(shapes=((4, 64, 1000),), device=CPU, dim=16)
    assert [r["op"] for r in rows] == ["draw", "draw_mask", "bank_update"]
    assert all(r["us"]["p50"] > 0 for r in rows), rows


def test_transport_of_every_provider():
    rows = gpu_ot.ot_rows(cases=[("sinkhorn", 0.05, 20), ("ipot", 0.5, 20)], device=CPU, dim=16)
    assert [r["solver"] for r in rows if r["provider"] == "ours"] == ["sinkhorn", "ipot"]
    for row in rows:
        assert "exit" not in row, row
        assert row["value_error"] < (2e-2 if row["provider"] == "GeomLoss" else 1e-4), row


@pytest.mark.slow
def test_the_profile_names_the_steps_ops(tmp_path):
    gpu.profile(tmp_path, CPU, steps=1)
    assert "conv" in (tmp_path / "gpu-profile.log").read_text()


def test_a_part_that_takes_too_long_is_stopped_and_said_to_be(tmp_path):
    row = gpu.run(
        "slow", [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"], tmp_path, 3
    )
    assert row == {"part": "slow", "exit": 124, "last_line": "stopped after 3 s"}
    assert "begun" in (tmp_path / "gpu-slow.log").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    done = subprocess.run([sys.executable, "-m", "bench.gpu"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "needs a CUDA device" in done.stderr
