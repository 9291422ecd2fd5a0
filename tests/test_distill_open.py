"""A user's own method, from outside the package: by decorator, and by dotted path in the command."""

from __future__ import annotations

import os
import sys

import pytest
import torch

from wcord_fast import distill, models
from wcord_fast.cli.main import main

from .outside import command, package_outside
from .rank_pool import alone

MINE = """
from dataclasses import dataclass
from wcord_fast import distill


@dataclass
class MineOptions(distill.Options):
    \"\"\"Options of mine.

    Attributes:
        weight: of the distance.
    \"\"\"

    weight: float = 0.5


@distill.register("mine")
class Mine(distill.Method):
    def __init__(self, pair: distill.Pair, options: MineOptions):
        super().__init__(pair, options)

    def own_loss(self, student, teacher, batch):
        own = (student.logits - teacher.logits).square().mean() + 0 * batch.labels.sum()
        return distill.Loss(self.options.weight * own, {"distance": own.detach()})


class Bare(Mine):
    \"\"\"Not registered.\"\"\"
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    yield from package_outside(tmp_path, monkeypatch, MINE, distill.METHODS)


def create(name, **options):
    torch.manual_seed(0)
    net = models.create("resnet8", 4, in_channels=1)
    return distill.create(
        name,
        student=net,
        teacher=net,
        example=torch.randn(2, 1, 8, 8),
        num_data=9,
        labels=torch.arange(9) % 4,
        **options,
    )


@pytest.mark.parametrize("path", ["my_package.mine.Mine", "my_package.mine:Mine", "my_package.mine.Bare+kd"])
def test_dotted_path_serves_as_a_name(package, path):
    method = create(path, weight=2.0)
    logits = torch.randn(3, 4)
    student = distill.Outputs([], logits.clone().requires_grad_())
    value, terms = method(student, distill.Outputs([], logits + 1), distill.Batch(None, torch.arange(3), None))
    assert terms["distance"].item() == pytest.approx(1.0)
    assert value.item() >= 2.0 - 1e-6 and ("kd" in terms) == path.endswith("+kd")


def test_registered_name_serves_like_a_built_in(package):
    __import__("my_package.mine")
    assert "mine" in distill.names() and distill.sections()["mine"].__name__ == "MineOptions"
    assert create("Mine").options.weight == 0.5


@pytest.mark.parametrize(
    ("path", "message"),
    [("my_package.nothing.Mine", "cannot be imported"), ("my_package.mine.MineOptions", "derived from distill.Method")],
)
def test_objects_that_are_no_method_are_refused(package, path, message):
    with pytest.raises((TypeError, ValueError), match=message):
        create(path)


def test_a_taken_name_is_refused():
    with pytest.raises(ValueError, match="name: 'kd' is taken"):

        @distill.register("kd")
        class Mine(distill.Method):
            pass

    with pytest.raises(ValueError, match=r"name: .*'Not A Name'"):
        distill.register("Not A Name")(distill.Method)


def test_the_command_trains_with_it(package, tmp_path):
    small = [
        "--data=digits",
        "--teacher=resnet8",
        "--student=resnet8",
        "--epochs=1",
        "--teacher-epochs=1",
        "--limit-train=64",
    ]
    own = [
        "--methods=ce,my_package.mine.Mine",
        "--mine.weight=2",
        f"--output-dir={tmp_path / 'out'}",
        "--tensorboard=false",
    ]
    done = command(package, *small, *own, "--threads=1")
    assert done.returncode == 0, done.stderr
    assert "my_package.mine.Mine" in done.stdout
    again = command(package, *small, *own, "--threads=1")
    assert again.returncode == 0, again.stderr  # finished runs are found again


def test_command_names_the_mistake_in_a_users_method(package):
    done = command(package, "--methods=my_package.mine.Mine", "--mine.wieght=2", "--dry-run")
    assert done.returncode == 2 and "--mine.weight" in done.stderr
    done = command(package, "--methods=my_package.nothing", "--dry-run")
    assert done.returncode == 2 and "my_package.nothing" in done.stderr


def test_command_finds_a_method_in_the_working_directory(tmp_path):
    (tmp_path / "of_mine.py").write_text(MINE)
    done = alone(tmp_path, from_script, str(tmp_path), ["distill", "--methods=of_mine.Mine", "--dry-run"])
    assert done.returncode == 0 and "of_mine.Mine" in done.stdout, done.stderr


def from_script(folder, argv):
    """As the script `wcord-fast` starts the command: the working directory is not on Python's path."""
    os.chdir(folder)
    sys.path[:] = [entry for entry in sys.path if entry not in ("", folder)]
    return main(argv)


def test_a_file_holds_the_options_of_a_users_method(package, tmp_path):
    file = tmp_path / "mine.yaml"
    printed = command(package, "--methods=my_package.mine.Mine", "--mine.weight=2", "--dry-run")
    assert printed.returncode == 0, printed.stderr
    file.write_text(printed.stdout)
    again = command(package, f"--config={file}", "--dry-run")
    assert again.returncode == 0, again.stderr
    assert again.stdout == printed.stdout and "weight: 2.0" in again.stdout
    changed = command(package, f"--config={file}", "--mine.weight=3", "--dry-run")
    assert changed.returncode == 0 and "weight: 3.0" in changed.stdout, changed.stderr
