"""`wcord-fast sweep`: privileged distillation, its tables, resuming and refusals."""

import csv
import dataclasses
import re

import pytest
import torch
import yaml

from tests.test_data_folder import write
from wcord_fast import data, models
from wcord_fast.cli import privileged, sweep
from wcord_fast.cli.main import main
from wcord_fast.cli.table import mean_and_deviation
from wcord_fast.train import checkpoint, metrics, views

from .train_tiny import config_of

TINY = ["--teacher=resnet8", "--students=resnet8,wrn_10_1", "--limit-train=60", "--image-size=8", "--student-size=4"]
TINY += ["--epochs=1", "--teacher-epochs=2", "--batch-size=20", "--quiet", "--no-tensorboard", "--threads=1"]
TINY += ["--crd.num-negatives=9", "--wcord.num-negatives=9"]


def config(*argv):
    return config_of(*argv, config="privileged")


def test_published_numbers():
    papers = yaml.safe_load(privileged.PUBLISHED.read_text())
    assert papers["methods"]["resnet8x4"]["wcord"] == [84.50] and papers["methods"]["inception_v3"]["cc"] == [79.01]
    assert list(papers["lambda1"]["values"]) == [0, 0.05, 0.07, 0.1, 0.15, 0.2, 0.5, 0.8, 1.0]
    assert list(papers["lambda2"]["values"]) == [0, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.2]
    assert list(papers["lambda2-cifar100"]["values"]) == [0, 0.01, 0.03, 0.05, 0.08, 0.1, 0.2]
    assert (papers["lambda1"]["fixed"], papers["lambda2"]["fixed"], papers["lambda2-cifar100"]["fixed"]) == (
        0.1,
        1.0,
        0.8,
    )


def test_the_published_weights_are_the_defaults():
    own = config()
    assert (own.options["wcord"].lambda_gckt, own.options["wcord"].lambda_lckt) == (1.0, 0.07)
    assert own.methods == ["ce", "at", "sp", "cc", "crd", "lckt", "wcord"]
    for point in sweep._points("lambda1", ["resnet8x4"], own):
        assert point.weights == (float(point.setting.split("= ")[1]), 0.1)


def test_the_task_on_digits():
    task = privileged.prepare(config(), None, None, None)
    assert (task.image_size, task.student_size) == (16, 4)
    digits = data.load("digits")
    assert torch.equal(task.teacher_data.train_labels, digits.train_labels)
    assert torch.equal(task.student_data.train_labels == 1, digits.train_labels == 8)
    assert torch.equal(task.student_data.test_labels == 1, digits.test_labels == 8)
    assert task.student_data.classes == ("not 8", "8") and task.student_data.train_labels.max() == 1
    other = privileged.prepare(config("--image-size=8"), "3", 12, None)  # the student may see more
    assert other.student_data.image_size == (12, 12) and other.teacher_data.image_size == (8, 8)
    assert torch.equal(other.student_data.test_labels == 1, digits.test_labels == 3)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    home = tmp_path_factory.mktemp("sweep")
    argv = ["sweep", "--methods=ce,crd,wcord", "--tables=methods,lambda2", "--seeds=0,2", *TINY]
    assert main([*argv, f"--output-dir={home}"]) == 0
    return home, argv


def rows_of(home):
    with open(home / "sweep.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_rows_and_files(finished):
    home, _ = finished
    rows = rows_of(home)
    methods = ["ce", "crd", "wcord"]
    assert [(r["student"], r["setting"]) for r in rows if r["table"] == "methods"] == [
        (student, method) for student in ("resnet8", "wrn_10_1") for method in methods
    ]
    swept = [r for r in rows if r["table"] == "lambda2"]
    values = [0, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.2]
    assert [r["setting"] for r in swept] == [f"lambda2 = {v:g}" for v in values]
    assert swept[3]["paper %"] == "84.50 ± 0.91" and all(r["seeds"] == "2" for r in rows)
    wcord = next(r for r in rows if (r["student"], r["setting"]) == ("resnet8", "wcord"))
    assert wcord["ours %"] == swept[3]["ours %"]  # one run, in both tables
    assert (home / "lambda2.png").read_bytes().startswith(b"\x89PNG") and not (home / "methods.png").exists()
    output = (home / "sweep.txt").read_text()
    assert "'8' against the rest: 6 of 60 training and 35 of 360 test images" in output and "NOT COMPARABLE" in output


def test_auc_is_measured_on_the_kept_weights(finished):
    """From the weights in student.pt and scikit-learn's digits alone."""
    home, _ = finished
    task = privileged.prepare(config(), None, None, None)
    small = privileged.prepare(config("--image-size=8", "--limit-train=60"), None, 4, None)
    areas = []
    for seed in (0, 2):
        net = models.create("resnet8", num_classes=2, in_channels=1)
        net.load_state_dict(torch.load(home / "resnet8" / f"seed{seed}" / "crd" / "student.pt", weights_only=True))
        images = small.student_data.test_images.float() / 255
        pixels = torch.nn.functional.interpolate(images, size=(4, 4), mode="bilinear", antialias=True)
        scaled = (pixels - small.student_data.mean[0]) / small.student_data.std[0]
        with torch.no_grad():
            logits = net.eval()(scaled.repeat_interleave(2, 2).repeat_interleave(2, 3))
        areas.append(metrics.auc(logits, task.student_data.test_labels))
    row = next(r for r in rows_of(home) if (r["student"], r["setting"]) == ("resnet8", "crd"))
    mean, deviation = map(float, row["ours %"].split(" ± "))
    want_mean, want_deviation = map(float, mean_and_deviation(areas).split(" ± "))
    assert mean == pytest.approx(want_mean, abs=0.02) and deviation == pytest.approx(want_deviation, abs=0.02)


def test_the_teacher_has_ten_classes_and_the_student_two(finished):
    home, _ = finished
    teacher = torch.load(home / "teachers" / "resnet8" / "teacher" / "teacher.pt", weights_only=True)
    student = torch.load(home / "resnet8" / "seed0" / "lambda_1_0.07" / "wcord" / "student.pt", weights_only=True)
    assert teacher["fc.weight"].shape == (10, 64) and student["fc.weight"].shape == (2, 64)


@pytest.mark.slow
def test_repeated_command_trains_nothing(finished, monkeypatch, capsys):
    home, argv = finished
    before = (home / "sweep.csv").read_text()
    monkeypatch.setattr("wcord_fast.train.loop.one_epoch", None)
    assert main([*argv, f"--output-dir={home}"]) == 0
    assert (home / "sweep.csv").read_text() == before
    assert main([*argv, f"--output-dir={home}", "--dry-run"]) == 0
    plan = yaml.safe_load(capsys.readouterr().out.split("Written:")[1].partition("\n")[2])
    assert set(plan["runs"].values()) == {"finished"} and len(plan["runs"]) == 2 * (3 + 3 + 7)
    assert plan["privileged"]["epochs"] == 1 and plan["sweep"]["seeds"] == [0, 2]


def test_directory_with_a_different_study_is_refused(finished, capsys):
    home, argv = finished
    assert main([*argv, f"--output-dir={home}", "--positive=3"]) == 1
    assert "task.positive was '8', now '3'" in capsys.readouterr().err


def test_a_teacher_of_other_images(tmp_path, capsys):
    write(tmp_path / "theirs", {"cat": 8, "dog": 8, "emu": 8})
    write(tmp_path / "own", {"dog": 12, "emu": 12})
    argv = ["sweep", "--data=folder", f"--data-dir={tmp_path / 'own'}", f"--teacher-data-dir={tmp_path / 'theirs'}"]
    argv += [*TINY[5:], "--teacher=resnet8", "--students=resnet8", "--image-size=16", "--tables=methods"]
    assert main([*argv, "--methods=sp", f"--output-dir={tmp_path / 'out'}"]) == 0
    output = capsys.readouterr().out
    assert "'emu' against the rest: 10 of 19 training and 2 of 5 test images are positive" in output
    assert "The teacher saw 16 pixels per side and 3 classes, the students 4 pixels" in output


def test_the_accuracy_table_sweeps_the_published_pair(tmp_path, capsys):
    argv = ["sweep", "--tables=lambda2-cifar100", f"--data-dir={tmp_path}", "--dry-run", f"--output-dir={tmp_path}"]
    published = tmp_path / "cifar100/resnet8x4/seed0/lambda_0.8_0.05/wcord"
    published.mkdir(parents=True)  # begun
    assert main(argv) == 0
    plan = yaml.safe_load(capsys.readouterr().out)
    assert plan["lambda2-cifar100"]["teacher"] == "resnet32x4" and len(plan["runs"]) == 7
    assert plan["runs"][str(published)] == "to do" and set(plan["runs"].values()) == {"to do"}


def test_accuracy_table_refuses_other_pairs(tmp_path, capsys):
    assert main(["sweep", "--tables=lambda2-cifar100", "--teacher=vgg13", f"--output-dir={tmp_path}"]) == 2
    assert "lambda2-cifar100 is for resnet32x4-resnet8x4" in capsys.readouterr().err


def test_unsupported_method_is_marked_n_a(tmp_path, capsys):
    argv = ["sweep", *TINY, "--students=wrn_10_1", "--teacher=vgg8", "--tables=methods", "--methods=at"]
    assert main([*argv, f"--output-dir={tmp_path}", "--image-size=16"]) == 0
    assert "wrn_10_1, at: at: compares the stages one by one" in capsys.readouterr().out


WRONG = {
    "--output-dir=": r"output_dir: expected the name of a file or a folder, got ''",
    "--tables=lamda1": r"tables: .*did you mean 'lambda1'",
    "--methods=crd+kd": r"'crd\+kd' has a KD term, but the two networks of this task share no label set",
    "--methods=kd": r"'kd' has a KD term",
    "--methods=wcrd": r"did you mean 'wcord'",
    "--students=resnet9": r"student: .*did you mean",
    "--student=resnet8": r"name them with --students",
    "--positive=eight": r"positive: expected one of '0'",
    "--seeds=0,0": r"seeds: expected distinct values",
    "--seeds=x": r"seeds: expected int",
    "--student-sise=4": r"unknown option '--student-sise'; did you mean '--student-size'\?",
    "--student-size=0": r"student_size: expected an int of at least 1",
    "--student-size=big": r"student_size: expected int or null",
    "--teacher-data-dir=x": r"goes with the data set 'folder', got 'digits'",
    "--data=imagenet": r"held in memory|holds its images in memory",
}


@pytest.mark.parametrize("word", WRONG)
def test_mistakes_in_options_are_named(word, tmp_path, capsys):
    assert main(["sweep", f"--output-dir={tmp_path}", word, "--quiet"]) == 2
    output = capsys.readouterr().err
    assert re.search(WRONG[word], output) and len(output.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_help(capsys):
    assert main(["sweep", "--help"]) == 0
    assert "--teacher-data-dir" in capsys.readouterr().out


def test_a_positive_class_without_a_test_image_is_refused():
    digits = data.load("digits", image_size=8)
    keep = digits.test_labels != 3
    none = dataclasses.replace(digits, test_images=digits.test_images[keep], test_labels=digits.test_labels[keep])
    with pytest.raises(ValueError, match="positive: no image of the test split is a '3'"):
        privileged.one_against_the_rest(none, "3")


def test_the_exported_network_of_a_view_is_normalised_as_it_was_trained(tmp_path, capsys):
    argv = [*TINY, "--students=resnet8", "--methods=ce", "--tables=methods", f"--output-dir={tmp_path / 'runs'}"]
    assert main(["sweep", *argv]) == 0
    (teacher,) = (tmp_path / "runs").glob("teachers/*/teacher")
    (student,) = (tmp_path / "runs").glob("resnet8/seed0/**/ce")
    digits = data.load("digits", image_size=8)
    for run, size in ((teacher, 8), (student, 4)):
        path = tmp_path / f"{size}.pt2"
        assert main(["export", str(run), "--format=torch.export", "--with-normalisation", f"--output={path}"]) == 0
        exported = torch.export.load(path).module()
        network = models.create("resnet8", 10 if run is teacher else 2, in_channels=1).eval()
        network.load_state_dict(torch.load(next(run.glob("*t*er.pt" if run is teacher else "student.pt"))))
        view = views.resized(size, digits, 1)
        images = digits.test_images[:5].float() / 255
        pixels = torch.nn.functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
        shown = pixels.repeat_interleave(8 // size, 2).repeat_interleave(8 // size, 3)
        seen = view.see(images).repeat_interleave(8 // size, 2).repeat_interleave(8 // size, 3)
        torch.testing.assert_close(exported(shown), network(seen), rtol=1e-4, atol=1e-5)
    capsys.readouterr()
    assert main(["evaluate", str(teacher)]) == 0
    logged = checkpoint.load(teacher / "checkpoint.pt")["history"][-1]["test_top1"]
    assert f"top-1 {logged:.2f} %" in capsys.readouterr().out
