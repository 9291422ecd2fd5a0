"""A user's own data set, from outside the package: by decorator, and by dotted path in the command."""

from __future__ import annotations

import pytest

from wcord_fast import data
from wcord_fast.cli.main import main
from wcord_fast.data import registry

from .outside import command, package_outside

MINE = """
import torch
from wcord_fast import data


@data.register("mine", image_size=8, positive="b")
def load(data_dir=None, image_size=None):
    g = torch.Generator().manual_seed(0)
    images, labels = torch.randint(256, (40, 1, image_size, image_size), generator=g).byte(), torch.arange(40) % 4
    return data.Dataset("mine", images, labels, images[:8], labels[:8], tuple("abcd"), (0.5,), (0.25,), flip=False)


def bare():
    return load(image_size=16)


def wrong():
    return [1, 2]


number = 3
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    yield from package_outside(tmp_path, monkeypatch, MINE, registry.SOURCES)


def test_dotted_path_serves_as_a_name(package):
    assert data.load("my_package.mine.bare").image_size == (16, 16)
    assert data.load("my_package.mine:load").image_size == (8, 8)  # registered by its module
    assert data.load("my_package.mine.load", image_size=12, limit_train=20).train_images.shape == (20, 1, 12, 12)
    assert data.load("Mine").name == "mine" and "mine" in data.held_names()
    assert data.source("my_package.mine.load").positive == "b"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("my_package.nothing.load", "name: 'my_package.nothing.load' cannot be imported"),
        ("my_package.mine.number", "expected 'my_package.mine.number' to be a function"),
        ("my_package.mine.wrong", r"my_package\.mine\.wrong.* to give a data\.Dataset, got \[1, 2\]"),
    ],
)
def test_objects_that_are_no_data_set_are_refused(package, path, message):
    with pytest.raises((TypeError, ValueError), match=message):
        data.load(path)


def test_a_taken_name_is_refused(package):
    with pytest.raises(ValueError, match="name: 'digits' is taken"):
        data.register("digits")(lambda: None)
    with pytest.raises(ValueError, match=r"name: .*'Not A Name'"):
        data.register("Not A Name")(lambda: None)
    with pytest.raises(TypeError, match="load"):
        data.register("number")(3)


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("image_size", "x", TypeError),
        ("image_size", 0, ValueError),
        ("held", "no", TypeError),
        ("needs_dir", 1, TypeError),
        ("config", 3, TypeError),
        ("positive", 8, TypeError),
        ("train_images", 1.5, TypeError),
    ],
)
def test_a_wrong_field_is_refused_by_name(package, field, value, error):
    with pytest.raises(error, match=f"{field}: expected .*, got {value!r}"):
        data.register("other", **{field: value})(lambda: None)
    assert "other" not in data.names()


def test_the_command_trains_on_it(package, tmp_path, capsys):
    small = ["--teacher=resnet8", "--student=resnet8", "--teacher-epochs=1", "--epochs=1", "--batch-size=8"]
    done = command(
        package,
        "--data=my_package.mine.load",
        "--methods=ce,crd",
        *small,
        "--threads=1",
        f"--output-dir={tmp_path}/out",
        "--no-tensorboard",
    )
    assert done.returncode == 0, done.stderr
    assert "40 training and 8 test images, 4 classes" in done.stdout + done.stderr
    run = str(tmp_path / "out" / "ce")
    assert main(["evaluate", run]) == 1 and "expected --data my_package.mine.load" in capsys.readouterr().err
    assert main(["evaluate", run, "--data=my_package.mine.load"]) == 0
    bad = command(package, "--data=my_package.nothing")
    assert bad.returncode == 2 and "data: 'my_package.nothing'" in bad.stderr


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("digits", {"channels": 1}, ValueError, "channels: the data set 'digits' does not have this option, got 1"),
        ("imagenet", {"channels": 1, "data_dir": "."}, ValueError, "channels: the data set 'imagenet' does not have"),
        ("cifar10", {"test_fraction": 0.3}, ValueError, "test_fraction: the data set 'cifar10' does not have"),
        (
            "folder",
            {"skip_corrupt": "no", "data_dir": "."},
            TypeError,
            "skip_corrupt: expected True or False, got 'no'",
        ),
        ("folder", {"data_dir": 3}, ValueError, "data_dir: expected the name of a file or a folder, got 3"),
        ("folder", {"data_dir": ""}, ValueError, "data_dir: expected the name of a file or a folder, got ''"),
    ],
)
def test_options_that_a_set_does_not_take_are_named(name, options, error, message):
    with pytest.raises(error, match=message):
        data.load(name, **options)
