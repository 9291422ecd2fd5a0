"""Files of a run: whole or not there, errors of one line, and one run at a time in a directory."""

import os
import time
from pathlib import Path

import pytest
import torch

from tests.rank_pool import LONGEST, context
from tests.train_tiny import make_run
from wcord_fast.cli import report
from wcord_fast.train import checkpoint, files
from wcord_fast.train.files import DirectoryInUse, OutputError, locked, replacing
from wcord_fast.train.loggers import write_csv
from wcord_fast.train.loop import fit


class FullDisk:
    """Opened in the place of a file: takes 1000 bytes."""

    def __init__(self, file):
        self._file, self._left = file, 1000

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, data):
        self._left -= len(bytes(data))
        if self._left < 0:
            raise OSError(28, "No space left on device")
        return self._file.write(data)


def test_a_full_disk_is_one_line_and_the_earlier_checkpoint_is_intact(tmp_path, monkeypatch):
    fit(make_run(tmp_path, epochs=1))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    longer = make_run(tmp_path, epochs=1)
    monkeypatch.setattr(files, "open", lambda *args: FullDisk(Path.open(Path(args[0]), args[1])), raising=False)
    state = checkpoint.load(tmp_path / checkpoint.CURRENT)
    with pytest.raises(OutputError, match=r"cannot write .*/checkpoint.pt: No space left on device$"):
        checkpoint.save(tmp_path, state)
    with pytest.raises(OutputError, match=r"cannot write .*/student.pt: No space left on device$"):
        checkpoint.save_state_dict(tmp_path / "student.pt", longer.student.state_dict())
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_full_disk_that_shows_when_the_file_is_closed(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"cannot write .*/x: No space left"), replacing(tmp_path / "x") as file:
        file.write(b"x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "place, reason",
    [("file/run", "Not a directory"), ("n" * 300, "File name too long"), ("/proc/nothing", "No such file|Permission")],
)
def test_impossible_directory_is_named(tmp_path, place, reason):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=rf"^output_dir: cannot write [^\n]*: ({reason})[^\n]*$"):
        fit(make_run(tmp_path / place))


def test_read_only_file_system_is_named(tmp_path, monkeypatch):
    def refuses(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuses)
    with pytest.raises(OutputError, match=r"^output_dir: cannot write .*run: Read-only file system$"):
        fit(make_run(tmp_path / "run"))


def test_results_file_of_wrong_type_is_named(tmp_path):
    (tmp_path / "metrics.csv").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*metrics.csv: Is a directory"):
        write_csv(tmp_path / "metrics.csv", [{"a": 1}])
    (tmp_path / "results.md").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*results.md: Is a directory"):
        report.write(tmp_path, {}, None, [{"a": "1"}], "")
    assert sorted(os.listdir(tmp_path)) == ["metrics.csv", "results.md"]


def test_tensorboard_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    (tmp_path / "tb").write_text("")
    assert len(fit(make_run(tmp_path, tensorboard=True))) == 2
    assert "no more logs by tensorboard" in caplog.text


def hold(directory, pipe):
    with locked(directory):
        pipe.send("held")
        time.sleep(LONGEST)


def test_a_second_run_in_a_directory_is_refused_at_once(tmp_path):
    ours, theirs = context().Pipe()
    holder = context().Process(target=hold, args=(tmp_path, theirs))
    holder.start()
    assert ours.poll(LONGEST) and ours.recv() == "held"
    run = make_run(tmp_path)
    with pytest.raises(DirectoryInUse, match=rf"{tmp_path} is in use by another run \(pid {holder.pid}\)"):
        fit(run)
    holder.kill()  # SIGKILL: the lock goes with the process
    holder.join()
    assert len(fit(run)) == 2


def test_next_run_removes_temporary_files_of_a_killed_one(tmp_path):
    (tmp_path / f"{files.TEMPORARY}123-0").write_text("half")
    fit(make_run(tmp_path))
    assert sorted(os.listdir(tmp_path)) == [
        ".lock",
        "checkpoint.prev.pt",
        "checkpoint.pt",
        "metrics.csv",
        "student.pt",
    ]


def test_two_writers_do_not_share_a_temporary_file(tmp_path):
    with replacing(tmp_path / "x") as one:
        with replacing(tmp_path / "x") as other:
            other.write(b"other")
        assert (tmp_path / "x").read_bytes() == b"other"
        one.write(b"one")
    assert (tmp_path / "x").read_bytes() == b"one" and len(list(tmp_path.iterdir())) == 1


def test_the_lock_is_free_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    with locked(tmp_path), pytest.raises(DirectoryInUse), locked(tmp_path):
        pass


def test_checkpoint_of_other_networks_is_refused(tmp_path):
    fit(make_run(tmp_path))
    path = tmp_path / checkpoint.CURRENT
    for key, value in (("student", {"x": torch.zeros(1)}), ("optimizer", {}), ("rng", {}), ("method", {"x": 1})):
        state = checkpoint.load(path)
        torch.save({**state, key: value}, path)
        with pytest.raises(checkpoint.CheckpointError, match="an incomplete checkpoint"):
            fit(make_run(tmp_path))
        torch.save(state, path)
