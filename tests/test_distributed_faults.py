"""The command on several processes, processes that are killed, and what is left of the run."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from wcord_fast import models
from wcord_fast.data import digits
from wcord_fast.train.checkpoint import load

from . import faulty_rank
from .rank_pool import launch

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher.pt"
    torch.manual_seed(0)
    torch.save(models.create("resnet8", 10, in_channels=digits.load().channels).state_dict(), path)
    return path


def arguments(directory, teacher, *extra):
    return [
        *("distill", "--limit-train=100", "--epochs=3", "--batch-size=50", "--teacher=resnet8", "--student=resnet8"),
        *(f"--teacher-checkpoint={teacher}", "--methods=wcord", "--wcord.feat-dim=8", "--wcord.num-negatives=9"),
        *("--no-tensorboard", f"--output-dir={directory}", "--wcord.shard=rank", *extra),
    ]


def command(directory, teacher, *extra, fault="", logs=None):
    """`wcord-fast` on two processes."""
    logs = logs or directory
    return launch(2, logs, faulty_rank.run, fault, arguments(directory, teacher, *extra))


def ours(text):
    return [line for line in text.splitlines() if line.startswith("wcord-fast ")]


def finished(directory):
    with (directory / "wcord" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert load(directory / "wcord" / "checkpoint.pt")["epoch"] == 3
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    return [(row["loss"], row["test_loss"]) for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, teacher):
    """The uninterrupted run."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, command(directory, teacher, logs=tmp_path_factory.mktemp("logs"))


def test_one_table_and_one_set_of_files(whole):
    directory, ended = whole
    assert ended.codes == [0, 0], ended.err
    assert ended.out[0].count("method   network") == 1 and ended.out[0].count("epoch   3/3") == 1
    assert ended.out[1] == "" and "Warning" not in "".join(ended.err)
    assert {p.name for p in directory.iterdir()} == {"wcord", "results.md", "results.csv", "accuracy.png"}
    finished(directory)


@pytest.mark.parametrize("fault", ["step:1", "step:0", "banks:1", "checkpoint:0", "step:all"])
def test_killed_processes_end_the_job_and_the_same_command_goes_on(whole, teacher, tmp_path, fault):
    ended = command(tmp_path, teacher, fault=fault)
    assert -signal.SIGKILL in ended.codes and 0 not in ended.codes
    said = [line for text in ended.err for line in ours(text)]
    if fault != "step:all":
        assert len(said) == 1 and "ended without a word" in said[0] and "goes on" in said[0], ended.err
    assert load(tmp_path / "wcord" / "checkpoint.pt")["epoch"] == 1
    again = command(tmp_path, teacher)
    assert again.codes == [0, 0], again.err
    assert "going on after epoch 1" in again.out[0]
    assert finished(tmp_path) == finished(whole[0])
    left = {p.name for p in (tmp_path / "wcord").iterdir()}
    assert left == {p.name for p in (whole[0] / "wcord").iterdir()}


def test_a_mistake_is_told_once(teacher, tmp_path):
    ended = command(tmp_path, teacher, "--batch-size=1")
    said = [line for text in ended.err for line in ours(text)]
    assert said == ["wcord-fast distill: batch_size: expected at least one image for each of 2 processes, got 1"]


@pytest.mark.slow
def test_torchrun_restarts_a_job_that_lost_a_process(teacher, tmp_path):
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*program, faulty_rank.__file__, *arguments(tmp_path, teacher)],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "going on after epoch 1" in done.stdout and "exitcode: -9" in done.stderr
    finished(tmp_path)
