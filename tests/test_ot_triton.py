"""Streaming Sinkhorn in Triton without a GPU: its kernels interpreted (tests/triton_interpret/ot_cases.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .grid import slow
from .triton_release import not_interpreted_reason

pytestmark = pytest.mark.skipif(not_interpreted_reason() is not None, reason=str(not_interpreted_reason()))

FOLDER = Path(__file__).parent / "triton_interpret"
FILES = ("ot_cases.py", "ot_matrix_cases.py", "ot_pair_cases.py")
FEW = "accuracy and not wide and (0.5 or 0.0001 or given_costs or every_output)"  # by default: both ends of eps


@pytest.mark.parametrize("keyword", [FEW, slow(f"not ({FEW})")], ids=["few", "others"])
def test_interpreted_kernels_equal_the_reference(keyword):
    """In a process of its own: triton decides at import whether it interprets."""
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", keyword]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *(str(FOLDER / name) for name in FILES)],
        cwd=FOLDER.parents[1],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-2000:]
