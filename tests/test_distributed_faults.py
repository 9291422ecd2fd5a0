"""The command on several processes, killed processes, and the files of the run afterwards."""

from __future__ import annotations

import csv
import signal

import pytest

from wcord_fast.train.checkpoint import load

from .faulty_job import command, last_epoch, make_teacher, ours, torchrun, tracebacks
from .grid import slow


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return make_teacher(tmp_path_factory.mktemp("teacher") / "teacher.pt")


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


def test_ranks_write_one_table_and_one_set_of_files(whole):
    directory, ended = whole
    assert ended.codes == [0, 0], ended.err
    assert ended.out[0].count("method   network") == 1 and ended.out[0].count("epoch   3/3") == 1
    assert ended.out[1] == "" and "Warning" not in "".join(ended.err)
    assert {p.name for p in directory.iterdir()} == {"wcord", "results.md", "results.csv", "accuracy.png"}
    finished(directory)


@pytest.mark.parametrize(
    "world, fault",
    [(2, fault) for fault in ("step:0", "banks:1", "checkpoint:0", "step:all")]
    + [slow(world, fault) for world, fault in ((2, "step:1"), (2, "renames:0"), (2, "test:0"), (3, "step:2"))],
)
def test_killed_process_ends_the_job_and_the_command_resumes(whole, teacher, tmp_path, world, fault):
    ended = command(tmp_path, teacher, fault=fault, world=world)
    assert -signal.SIGKILL in ended.codes and 0 not in ended.codes
    message = [line for text in ended.err for line in ours(text)]
    if fault != "step:all":
        assert len(message) == 1 and "ended without a word" in message[0] and "goes on" in message[0], ended.err
    assert tracebacks(ended) == 0
    assert last_epoch(tmp_path) == 1
    again = command(tmp_path, teacher)
    assert again.codes == [0, 0], again.err
    assert "going on after epoch 1" in again.out[0]
    end, other = finished(tmp_path), finished(whole[0])
    assert end == other if world == 2 else len(end) == len(other)
    left = {p.name for p in (tmp_path / "wcord").iterdir()}
    assert left == {p.name for p in (whole[0] / "wcord").iterdir()}


@pytest.mark.slow
def test_torchrun_restarts_a_job_that_lost_a_process(teacher, tmp_path):
    done = torchrun("step:1", tmp_path, teacher, "--max-restarts=1")
    assert done.returncode == 0, done.stderr
    assert "going on after epoch 1" in done.stdout and "exitcode: -9" in done.stderr
    finished(tmp_path)
