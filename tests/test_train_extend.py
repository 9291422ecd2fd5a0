"""`--extend`: a finished run continues to more epochs, and logs the schedule."""

import pytest

from tests.test_train_loop import assert_equal, everything
from wcord_fast.cli.main import main
from wcord_fast.train import checkpoint, loop, schedule

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


def test_students_are_extended_with_the_teacher_that_they_have(tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "data: digits\nimage_size: 8\nlimit_train: 40\nbatch_size: 20\nteacher: resnet8\nstudent: resnet8\n"
    )
    argv = ["distill", f"--config={file}", "--methods=ce", "--tensorboard=false", f"--output-dir={tmp_path}"]
    assert main([*argv, "--epochs=1"]) == 0  # the teacher's epochs are the students'
    before = (tmp_path / "teacher" / "checkpoint.pt").read_bytes()
    assert main([*argv, "--epochs=2", "--extend"]) == 0
    output = capsys.readouterr().out
    assert "teacher: keeps its 1 epochs" in output and "ce: extended from 1 to 2 epochs" in output
    assert main([*argv, "--epochs=2", "--extend", "--teacher-epochs=2"]) == 1
    assert "learned from the teacher of 1 epochs" in capsys.readouterr().err
    assert (tmp_path / "teacher" / "checkpoint.pt").read_bytes() == before
    assert main([*argv, "--epochs=2", "--teacher-epochs=1"]) == 0
    assert "ce: finished earlier, 2 epochs" in capsys.readouterr().out


def test_a_pre_training_stage_stays_as_it_is(tmp_path, capsys, monkeypatch):
    argv = [*TINY[:-2], "--methods=fsp", "--tensorboard=false", "--milestones=30", f"--output-dir={tmp_path}"]
    argv = [a for a in argv if not a.startswith(("--methods=crd", "--crd"))] + ["--teacher-epochs=1"]
    one_epoch = loop.one_epoch

    def dies(run, *rest):
        if run.name == "fsp":
            raise KeyboardInterrupt
        return one_epoch(run, *rest)

    monkeypatch.setattr(loop, "one_epoch", dies)
    assert main([*argv, "--epochs=1"]) == 130
    monkeypatch.undo()
    assert main([*argv, "--epochs=12", "--extend"]) == 0, capsys.readouterr().err
    assert len(checkpoint.load(tmp_path / "fsp" / "stage" / "checkpoint.pt")["history"]) == 1  # not 12 / 8


def test_rates_that_differ_within_an_epoch_are_announced():
    cosine = recipe(2) | {"schedule": "cosine"}, recipe(4) | {"schedule": "cosine"}
    assert "other rates in epochs 1" in schedule.announcement(*cosine, done=1)
    warm = recipe(4, [9.0]) | {"warmup": 0.5}, recipe(8, [9.0]) | {"warmup": 0.5}
    assert "other rates in epochs 1" in schedule.announcement(*warm, done=1)
    equal = recipe(4, [9.0]) | {"warmup": 2}, recipe(8, [9.0]) | {"warmup": 2}
    assert "had the rates of an uninterrupted run of 8" in schedule.announcement(*equal, done=2)


def test_a_teacher_alone_is_extended_by_the_epochs_of_its_file(tmp_path):
    file = tmp_path / "mine.yaml"
    for epochs in (1, 2):
        file.write_text(
            f"data: digits\nimage_size: 8\nlimit_train: 40\nbatch_size: 20\nteacher: resnet8\nepochs: {epochs}\n"
        )
        argv = ["teacher", f"--config={file}", "--extend", "--tensorboard=false", f"--output-dir={tmp_path / 'out'}"]
        assert main(argv) == 0
        assert checkpoint.load(tmp_path / "out" / "teacher" / "checkpoint.pt")["epoch"] == epochs
