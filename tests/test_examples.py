"""The examples run as their first lines say, made small."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SMALL = {
    "replace_crd_loss.py": ["--epochs", "2"],
    "ot_between_batches.py": ["--steps", "60"],
    "ten_million_rows.py": ["--rows", "100000", "--negatives", "2048", "--steps", "2"],
}


def told(name: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *SMALL[name]],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_tried():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SMALL)


def test_replaced_crd_trains():
    out = told("replace_crd_loss.py")
    accuracies = dict(re.findall(r"(teacher|student): ([\d.]+) %", out))
    assert float(accuracies["teacher"]) > 25 and float(accuracies["student"]) > 25, out  # chance is 10


def test_points_move_to_their_targets():
    out = told("ot_between_batches.py")
    first, *_, last = (float(x) for x in re.findall(r"divergence (\S+)", out))
    assert last < first / 100, out
    assert "plan (256, 256) of mass 1.000000" in out


def test_many_rows():
    out = told("ten_million_rows.py")
    losses = [float(x) for x in re.findall(r"step \d: loss (\S+),", out)]
    assert "plan=gather" in out and len(losses) == 2 and all(map(math.isfinite, losses)), out
