"""A user's own network, from outside the package: by decorator, and by dotted path in the command."""

from __future__ import annotations

import sys

import pytest
import torch

from wcord_fast import models
from wcord_fast.cli.main import main
from wcord_fast.models import own

from .outside import command, package_outside

MINE = """
import torch
from torch import nn
from wcord_fast import models


class Small(nn.Module):
    def __init__(self, num_classes, in_channels=3, width=8):
        super().__init__()
        first, second = nn.Conv2d(in_channels, width, 3, 2, 1), nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.body = nn.Sequential(first, nn.ReLU(), second)
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, x):
        return self.head(self.body(x).relu().mean((2, 3)))


@models.register("small")
def small(num_classes, in_channels=3):
    return Small(num_classes, in_channels)


def loaded(num_classes, in_channels=3, pretrained=False):
    return Small(num_classes, in_channels, width=4 if pretrained else 8)


def flat(num_classes, in_channels):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 8 * 8, 12), nn.ReLU(), nn.Linear(12, num_classes))


def wrong(num_classes, in_channels):
    return "a network"


number = 3
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    yield from package_outside(tmp_path, monkeypatch, MINE, own.MAKERS)


@pytest.mark.parametrize("path", ["my_package.mine.Small", "my_package.mine:Small", "my_package.mine.small"])
def test_dotted_path_serves_as_a_name(package, path):
    net = models.create(path, 5, in_channels=1)
    features, logits = net(torch.randn(2, 1, 20, 20), return_features=True)
    assert logits.shape == (2, 5) and features[-1].shape == (2, 16)
    assert models.least_size(path) == 1
    models.require_known(path)


def test_registered_name_serves_like_a_built_in(package):
    __import__("my_package.mine")
    assert "small" in models.names() and models.create("small", 3)(torch.randn(1, 3, 9, 9)).shape == (1, 3)


def test_options_and_sizes_are_its_own(package):
    assert models.create("my_package.mine.Small", 5, width=4).head.in_features == 8
    net = models.create("my_package.mine.flat", 5, in_channels=1, image_size=(8, 8))
    assert net(torch.randn(2, 1, 8, 8), return_features=True)[0][-1].shape == (2, 12)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("my_package.nothing.Small", r"name: 'my_package\.nothing\.Small' cannot be imported"),
        ("my_package.mine.number", r"expected 'my_package\.mine\.number' to be a function or a class"),
        ("my_package.mine.wrong", r"my_package\.mine\.wrong to make a torch\.nn\.Module, got str"),
    ],
)
def test_objects_that_are_no_network_are_refused(package, path, message):
    with pytest.raises((TypeError, ValueError), match=message):
        models.create(path)


def test_registered_name_serves_in_any_case(package):
    __import__("my_package.mine")
    for spelling in ("Small", "SMALL", " small "):
        assert models.create(spelling, 3).head.out_features == 3
        assert models.least_size(spelling) == 1
        models.require_known(spelling)


def test_pretrained_reaches_a_function_that_takes_it_and_is_refused_elsewhere(package):
    assert models.create("my_package.mine.loaded", 5, pretrained=True).head.in_features == 8
    assert models.create("my_package.mine.loaded", 5).head.in_features == 16
    with pytest.raises(ValueError, match=r"pretrained: .* got my_package\.mine\.small"):
        models.create("my_package.mine.small", 5, pretrained=True)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_classes": 0}, ValueError, "num_classes: expected an int of at least 1, got 0"),
        ({"num_classes": 2.5}, TypeError, "num_classes"),
        ({"in_channels": 0}, ValueError, "in_channels"),
        ({"image_size": 5}, ValueError, "image_size: expected height and width, got 5"),
        ({"image_size": (8,)}, ValueError, "image_size: expected height and width"),
        ({"image_size": (8, 0)}, ValueError, "image_size"),
        ({"features": 5}, TypeError, "features: expected the name of a module"),
    ],
)
def test_wrong_options_are_refused_by_name(package, options, error, message):
    with pytest.raises(error, match=message):
        models.create("my_package.mine.small", **options)


@pytest.mark.parametrize(
    "name", ["resnet20", "resnet_20", "wrn_28_10", "wrn_5_1", "vgg13_bn", "resnet50", "inception_v3"]
)
def test_published_name_is_taken(package, name):
    with pytest.raises(ValueError, match=f"'{name}' is taken"):
        models.register(name)(lambda num_classes, in_channels: None)
    assert name not in own.MAKERS


def test_unknown_name_is_refused(package):
    for name in ("Not A Name", 3):
        with pytest.raises(ValueError, match="name"):
            models.register(name)(lambda: None)
    models.register("mine")(len)
    with pytest.raises(ValueError, match="'mine' is taken"):
        models.register("mine")(print)


def test_the_command_trains_it_and_runs_its_code_from_a_checkpoint_only_by_name(package, tmp_path, capsys):
    small = [
        "--data=digits",
        "--image-size=8",
        "--limit-train=64",
        "--epochs=1",
        "--teacher-epochs=1",
        "--threads=1",
        "--no-tensorboard",
    ]
    nets = ["--teacher=my_package.mine.Small", "--student=my_package.mine.flat", "--methods=ce,crd"]
    done = command(package, *nets, *small, f"--output-dir={tmp_path}/out", "--no-tensorboard")
    assert done.returncode == 0, done.stderr
    run = str(tmp_path / "out" / "ce")
    for name in ("evaluate", "export"):
        sys.modules.pop("my_package.mine", None)
        own.MAKERS.clear()
        assert main([name, run]) == 1
        assert "names 'my_package.mine.flat', code outside of this library" in capsys.readouterr().err
        assert "my_package.mine" not in sys.modules
        assert main([name, run, "--model=my_package.mine.Small"]) == 1
        assert "its model is 'my_package.mine.flat', but --model says" in capsys.readouterr().err
        assert main([name, run, "--model=my_package.mine.flat"]) == 0
    bad = command(package, "--student=my_package.nothing")
    assert bad.returncode == 2 and "student: 'my_package.nothing'" in bad.stderr
