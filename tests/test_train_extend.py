"""`--extend`: a finished run continues to more epochs, and logs the schedule."""

import pytest

from tests.test_train_loop import assert_equal, everything
from wcord_fast.cli.main import main
from wcord_fast.train import schedule

TINY = [
    "distill",
    "--data=digits",
    "--image-size=8",
    "--limit-train=40",
    "--batch-size=20",
    "--teacher=resnet8",
    "--student=resnet8",
]
TINY += ["--teacher-epochs=1", "--methods=crd", "--crd.num-negatives=8", "--crd.feat-dim=8", "--no-tensorboard"]


def run(directory, *options):
    return main([*TINY, f"--output-dir={directory}", *options])


def recipe(epochs, milestones=(0.5, 0.75)):
    return {"epochs": epochs, "lr": 1.0, "lr_decay": 0.5, "milestones": list(milestones)}


def test_extended_run_equals_the_longer_run(tmp_path, capsys):
    """With decays that neither run has reached, it ends with the bits of the uninterrupted one."""
    late = "--milestones=9"
    assert run(tmp_path / "short", "--epochs=2", late) == 0
    assert run(tmp_path / "short", "--epochs=4", late) == 1
    refused = capsys.readouterr().err
    assert "recipe.epochs was 2, now 4" in refused and "extend (--extend) to go on with it" in refused
    assert run(tmp_path / "short", "--epochs=4", late, "--extend") == 0
    output = capsys.readouterr().out
    assert "crd: extended from 2 to 4 epochs after epoch 2" in output and "decays after epochs 9.0" in output
    assert run(tmp_path / "whole", "--epochs=4", late) == 0
    assert_equal(everything(tmp_path / "short" / "crd"), everything(tmp_path / "whole" / "crd"))
    capsys.readouterr()
    assert run(tmp_path / "short", "--epochs=4", late) == 0  # from now on it is that run
    assert "crd: finished earlier, 4 epochs" in capsys.readouterr().out


def test_runs_that_cannot_be_extended_are_refused(tmp_path, capsys):
    assert run(tmp_path, "--epochs=2") == 0
    assert run(tmp_path, "--epochs=1", "--extend") == 1
    output = capsys.readouterr().err
    assert "recipe.epochs was 2, now 1" in output and "--extend" not in output
    assert run(tmp_path, "--epochs=3", "--lr=0.01", "--extend") == 1
    assert "recipe.lr was 0.05, now 0.01" in capsys.readouterr().err
    assert run(tmp_path, "--epochs=3", "--extend", "--restart") == 2
    assert "extend: " in capsys.readouterr().err


def test_announcement_names_the_new_schedule():
    output = schedule.announcement(recipe(4), recipe(8), done=4)
    assert "decays after epochs 4, 6, next rate 0.5" in output
    assert "other rates in epochs 3-4" in output  # of the shorter schedule, which decayed after 2 and 3
    assert "had the rates of an uninterrupted run of 8" in schedule.announcement(recipe(4), recipe(8), done=2)
    assert "method's" not in output
    assert "method's weights that change in training" in schedule.announcement(recipe(4), recipe(8), 4, True)
    assert "decays after epochs none" in schedule.announcement(recipe(2, ()), recipe(8, ()), done=2)


@pytest.mark.parametrize("old, new, taken", [(2, 5, True), (5, 2, False), (2, 2, False), (None, 5, False)])
def test_only_a_larger_epochs_option_extends_a_checkpoint(old, new, taken):
    saved = {"recipe": {"epochs": old, "lr": 1}, "model": "a"}
    expected = {"recipe": {"epochs": new, "lr": 1}, "model": "a"}
    assert (schedule.lengthened(saved, expected) == expected) == (taken or old == new)
    assert saved["recipe"]["epochs"] == old
