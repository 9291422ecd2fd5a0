"""Checkpoints: whole or not at all, verified, and refused when they belong to another run."""

import os
import pickle
import random
import shutil
import subprocess

import numpy as np
import pytest
import torch

from wcord_fast.train import checkpoint
from wcord_fast.train.checkpoint import CURRENT, PREVIOUS, CheckpointError
from wcord_fast.train.files import OutputError

SPEC = {"model": "resnet8", "recipe": {"epochs": 3, "lr": 0.05, "milestones": [0.5]}}


def state(epoch):
    weights = torch.arange(5000, dtype=torch.float32) + epoch
    rest = {"method": {}, "optimizer": {}, "rng": {}, "history": [{"epoch": epoch}]}
    return {"spec": SPEC, "epoch": epoch, "student": {"w": weights}, **rest}


@pytest.fixture
def directory(tmp_path):
    checkpoint.save(tmp_path, state(1))
    checkpoint.save(tmp_path, state(2))
    return tmp_path


def flip_byte(path, at=None):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 if at is None else at] ^= 0x10
    path.write_bytes(raw)


def test_last_checkpoint_loads_and_the_previous_one_is_kept(directory):
    assert checkpoint.load_latest(directory, SPEC)["epoch"] == 2
    assert checkpoint.load(directory / PREVIOUS)["epoch"] == 1
    assert sorted(os.listdir(directory)) == [PREVIOUS, CURRENT]
    torch.testing.assert_close(checkpoint.load(directory / CURRENT)["student"]["w"], state(2)["student"]["w"])


def test_empty_directory_has_no_checkpoint(tmp_path):
    assert checkpoint.load_latest(tmp_path, SPEC) is None
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoint.load(tmp_path / CURRENT)


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped byte", "text", "missing"])
def test_damaged_checkpoint_falls_back_to_the_previous(directory, damage, caplog):
    path = directory / CURRENT
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-700])
    elif damage == "flipped byte":
        flip_byte(path)
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"" if damage == "empty" else b"no checkpoint at all")
    assert checkpoint.load_latest(directory, SPEC)["epoch"] == 1
    text = "" if damage == "missing" else f"going on from {directory / PREVIOUS} (epoch 1)"
    assert text in caplog.text
    checkpoint.save(directory, state(2))  # as the run goes on: again there are two good ones
    assert [checkpoint.load(directory / name)["epoch"] for name in (CURRENT, PREVIOUS)] == [2, 1]


def test_two_damaged_checkpoints_raise_naming_both(directory):
    flip_byte(directory / CURRENT)
    flip_byte(directory / PREVIOUS)
    with pytest.raises(CheckpointError, match=r"checkpoint.pt: damaged.*checkpoint.prev.pt: damaged.*--restart"):
        checkpoint.load_latest(directory, SPEC)


def test_failed_write_leaves_the_files_unchanged(directory, monkeypatch):
    def full_disk(value, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    before = {p.name: p.read_bytes() for p in directory.iterdir()}
    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(directory, state(3))
    assert {p.name: p.read_bytes() for p in directory.iterdir()} == before


def test_killed_between_the_two_renames(directory, monkeypatch):
    real, calls = os.replace, []

    def dies_second(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", dies_second)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(directory, state(3))
    monkeypatch.undo()
    assert checkpoint.load_latest(directory, SPEC)["epoch"] == 2
    checkpoint.save(directory, state(3))
    assert checkpoint.load_latest(directory, SPEC)["epoch"] == 3


def test_different_configuration_is_refused_naming_its_fields(directory):
    other = {"model": "resnet14", "recipe": {**SPEC["recipe"], "lr": 0.1}}
    with pytest.raises(CheckpointError, match=r"model was 'resnet8', now 'resnet14'; recipe.lr was 0.05, now 0.1"):
        checkpoint.load_latest(directory, other)
    checkpoint.require_same(directory, {"a": (1, 2)}, {"a": [1, 2]})
    with pytest.raises(CheckpointError, match=r"a was None, now 1; b was 1, now None"):
        checkpoint.require_same(directory, {"b": 1}, {"a": 1})


@pytest.mark.parametrize("value", [{"model": {}}, [1, 2], {"format": 99, "spec": {}}])
def test_files_of_other_programs_are_refused(tmp_path, value):
    torch.save(value, tmp_path / CURRENT)
    with pytest.raises(CheckpointError, match=r"not a checkpoint of this package|expected checkpoint format 1, got 99"):
        checkpoint.load_latest(tmp_path, SPEC)


@pytest.mark.parametrize("key", ["spec", "epoch", "student", "method", "optimizer", "rng", "history"])
@pytest.mark.parametrize("value", [None, "absent", [1]])
def test_incomplete_checkpoint_is_refused_naming_the_missing_entry(tmp_path, key, value):
    if (key, value) == ("history", [1]):
        value = {}
    whole = {"format": 1, **state(1), key: value}
    if value == "absent":
        del whole[key]
    torch.save(whole, tmp_path / CURRENT)
    with pytest.raises(CheckpointError, match=rf"{CURRENT}: .*'{key}'"):
        checkpoint.load(tmp_path / CURRENT)


def test_weights_that_are_not_finite_are_refused_by_name(directory, caplog):
    bad = state(3)
    bad["student"]["w"][17] = float("nan")
    checkpoint.save(directory, bad)
    with pytest.raises(CheckpointError, match=rf"{CURRENT}: w holds NaN or infinite values"):
        checkpoint.load(directory / CURRENT)
    assert checkpoint.load_latest(directory, SPEC)["epoch"] == 2


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_no_code_in_a_file_is_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "boom"),))

    with open(tmp_path / "raw.pt", "wb") as file:
        pickle.dump(Bomb(), file)
    torch.save({"format": 1, "spec": Bomb()}, tmp_path / "zip.pt")
    for name in ("raw.pt", "zip.pt"):
        with pytest.raises(CheckpointError, match="damaged or not a PyTorch file"):
            checkpoint.load(tmp_path / name)
    assert not (tmp_path / "boom").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("read", [checkpoint.load, checkpoint.read])
def test_a_text_file_is_refused_in_words(tmp_path, read):
    path = tmp_path / "text.pt"
    path.write_text("hello")
    with pytest.raises(CheckpointError, match=r"damaged or not a PyTorch file \([^0-9]*[a-z][^0-9]*\)"):
        read(path)


def test_random_generators_go_on_where_they_were(tmp_path):
    def draw():
        return (
            torch.rand(3).tolist(),
            np.random.rand(3).tolist(),
            np.random.randn(),
            random.random(),
            random.gauss(0, 1),
        )

    np.random.randn()  # leaves a cached gaussian behind
    random.gauss(0, 1)
    checkpoint.save(tmp_path, {**state(1), "rng": checkpoint.rng_state()})
    expected = draw()
    draw()
    checkpoint.set_rng_state(checkpoint.load_latest(tmp_path, SPEC)["rng"])
    assert draw() == expected


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_real_full_disk_keeps_the_checkpoint(small_disk):
    checkpoint.save(small_disk, state(1))
    checkpoint.save(small_disk, state(2))
    before = {p.name: p.read_bytes() for p in small_disk.iterdir()}
    large = state(3) | {"student": {"weight": torch.zeros(1 << 17)}}
    with pytest.raises(OutputError, match=r"cannot write .*checkpoint\.pt.*: No space left on device"):
        checkpoint.save(small_disk, large)
    assert {p.name: p.read_bytes() for p in small_disk.iterdir()} == before
    assert checkpoint.load_latest(small_disk, SPEC)["epoch"] == 2
