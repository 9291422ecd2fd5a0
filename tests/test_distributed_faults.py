"""torchrun: the command on several processes, processes that are killed, and what is left of the run."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from wcord_fast import models
from wcord_fast.data import digits
from wcord_fast.train.checkpoint import load

ROOT = Path(__file__).parents[1]
FAULTY = ROOT / "tests" / "faulty_rank.py"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher.pt"
    torch.manual_seed(0)
    torch.save(models.create("resnet8", 10, in_channels=digits.load().channels).state_dict(), path)
    return path


def torchrun(directory, teacher, *extra, world=2, program=("-m", "wcord_fast"), fault=""):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}", *program]
    command += [
        "distill",
        "--limit-train=100",
        "--epochs=3",
        "--batch-size=50",
        "--teacher=resnet8",
        "--student=resnet8",
    ]
    command += [f"--teacher-checkpoint={teacher}", "--methods=wcord", "--wcord.feat-dim=8", "--wcord.num-negatives=9"]
    command += ["--no-tensorboard", f"--output-dir={directory}", "--wcord.shard=rank", *extra]
    env = os.environ | {"FAULT": fault, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=240, check=False)


def ours(done):
    return [line for line in done.stderr.splitlines() if line.startswith("wcord-fast ")]


def finished(directory):
    with (directory / "wcord" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert load(directory / "wcord" / "checkpoint.pt")["epoch"] == 3
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    return [(row["loss"], row["test_loss"]) for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, teacher):
    """The uninterrupted run on two processes."""
    directory = tmp_path_factory.mktemp("whole")
    done = torchrun(directory, teacher)
    assert done.returncode == 0, done.stderr
    return directory, done


def test_one_table_one_set_of_files(whole):
    directory, done = whole
    assert done.stdout.count("method   network") == 1 and done.stdout.count("epoch   3/3") == 1
    assert not ours(done) and "Warning" not in done.stderr
    assert {p.name for p in directory.iterdir()} == {"wcord", "results.md", "results.csv", "accuracy.png"}
    finished(directory)


@pytest.mark.parametrize("fault", ["step:1", "banks:1", "checkpoint:0", "step:all"])
def test_killed_processes_end_the_job_and_the_same_command_goes_on(whole, teacher, tmp_path, fault):
    done = torchrun(tmp_path, teacher, program=(str(FAULTY),), fault=fault)
    assert done.returncode != 0
    assert "Signal 9 (SIGKILL)" in done.stderr  # torchrun's own account
    said = ours(done)
    assert len(said) <= 1 and all("ended without a word" in line and "goes on" in line for line in said), done.stderr
    assert load(tmp_path / "wcord" / "checkpoint.pt")["epoch"] == 1
    again = torchrun(tmp_path, teacher)
    assert again.returncode == 0, again.stderr
    assert "going on after epoch 1" in again.stdout
    assert finished(tmp_path) == finished(whole[0])
    left = {p.name for p in (tmp_path / "wcord").iterdir()}
    assert left == {p.name for p in (whole[0] / "wcord").iterdir()}


def test_a_mistake_is_told_once(teacher, tmp_path):
    done = torchrun(tmp_path, teacher, "--batch-size=1")
    assert done.returncode != 0
    assert ours(done) == ["wcord-fast distill: batch_size: expected at least one image for each of 2 processes, got 1"]
