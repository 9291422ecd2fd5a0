"""The report of ptxas on the streaming Sinkhorn kernels for sm_80 and sm_90: no stack, no spills, planned occupancy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .triton_release import judge

pytest.importorskip("triton")

REGISTERS = 65536  # of an SM
SHARED = {80: 100 << 10, 90: 228 << 10}  # bytes of an SM (of sm_86 and sm_89 too); 1 KB per block is the system's
ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_fit(capability, tmp_path):
    command = [sys.executable, "-m", "tests.triton_interpret.ot_usage", str(capability)]
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    actual = [json.loads(line) for line in done.stdout.splitlines()]
    assert {kernel["name"].split()[0] for kernel in actual} == {"sweep", "combine", "finish", "plan_sum", "pair"}
    problems = []
    for kernel in actual:
        assert kernel["shared"] + 1024 <= SHARED[capability], kernel  # else it cannot be launched
        assert kernel["merged"] == 0, kernel  # lanes that store one sum have equal bits
        if spilled := max(kernel["stack"], kernel["stores"], kernel["loads"]):
            problems.append(f"{kernel['name']} spills {spilled} bytes")
        per_warp = -(-kernel["registers"] * 32 // 256) * 256  # allocated in units of 256
        shared = kernel["resident"] * (kernel["shared"] + 1024) <= SHARED[capability]
        registers = kernel["resident"] * kernel["warps"] * per_warp <= REGISTERS
        if not (shared and registers):
            problems.append(f"{kernel['name']} leaves no room for {kernel['resident']} blocks: {kernel}")
    judge(problems)
