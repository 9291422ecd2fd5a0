"""`wcord-fast crossmodal`: unlabelled students, linear probes, resuming and refusals."""

import csv
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from wcord_fast import data, distill, models
from wcord_fast.cli import crossmodal
from wcord_fast.cli.main import main
from wcord_fast.cli.parser import parse
from wcord_fast.train import linear_probe

CIFAR = Path(os.environ["CIFAR100"]) if "CIFAR100" in os.environ else None
TINY = ["--data=digits", "--teacher=resnet8", "--student=resnet8", "--limit-train=200", "--image-size=8"]
TINY += ["--epochs=2", "--batch-size=20", "--quiet", "--no-tensorboard", "--threads=1"]
TINY += ["--crd.num-negatives=9", "--wcord.num-negatives=9"]


def config(*argv):
    return crossmodal._config(parse("crossmodal", crossmodal.CrossModalOptions, [*TINY, *argv])[1])


def test_the_task_on_digits():
    task = crossmodal.prepare(config(), 0.2)
    digits = data.load("digits", image_size=8, limit_train=200)
    assert task.teacher_data.classes == tuple("01234") and task.labelled.classes == tuple("56789")
    own = digits.train_labels >= 5
    assert torch.equal(task.unlabelled.train_images, digits.train_images[own])
    assert int(task.unlabelled.train_labels.max()) == 0 and task.unlabelled.num_classes == 1
    assert len(task.labelled.train_labels) == round(0.2 * int(own.sum()))
    assert torch.equal(task.labelled.test_labels, digits.test_labels[digits.test_labels >= 5] - 5)
    assert (task.teacher_view.channels, task.student_view.channels) == (1, 1)


def test_no_method_gets_labels_or_a_cross_entropy():
    """The loss is -.8 GCKT + .05 LCKT alone, and only the anchor's own row is no negative."""
    own = config()
    assert all(options.ce_weight == 0 for options in own.options.values())
    task = crossmodal.prepare(own, 0.2)
    bench = task.student_bench(own)
    teacher = task.teacher_bench(own).untrained("resnet8")
    pair = bench._pair(bench.untrained("resnet8"), teacher)
    assert pair.labels is None
    method = distill.build("wcord", pair, own.method_options("wcord"))
    assert (method.wcord.lambda_gckt, method.wcord.lambda_lckt) == (0.8, 0.05)
    assert method.wcord.contrast.sampler.exclude == "self"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    home = tmp_path_factory.mktemp("crossmodal")
    argv = ["crossmodal", *TINY, "--labelled=0.3", "--methods=crd,wcord,lckt"]
    assert main([*argv, f"--output-dir={home}"]) == 0
    return home, argv


def rows_of(home):
    with open(home / "crossmodal.csv", newline="") as file:
        return {row["method"]: [float(row[f"block {b} %"]) for b in (1, 2, 3, 4)] for row in csv.DictReader(file)}


def test_rows_and_files(finished):
    home, _ = finished
    rows = rows_of(home)
    assert list(rows) == ["random", "scratch", "crd", "wcord", "lckt"]
    assert all(20 < value <= 100 for values in rows.values() for value in values)  # chance is 20 %
    output = (home / "crossmodal.txt").read_text()
    assert "55.00 / 63.64 / 73.76 / 74.75" in output and "NOT COMPARABLE" in output
    assert "top-1 % on 179 test images of 5 classes, learnt from 30 labelled ones" in output
    assert "(resnet8, means of 4x4 pixels)" in output and "100 images without labels" in output


def test_crossmodal_metrics_without_labels(finished):
    """There is no accuracy, because the labels are unknown."""
    home, _ = finished
    with open(home / "resnet8" / "seed0" / "wcord" / "metrics.csv", newline="") as file:
        first = next(csv.DictReader(file))
    assert {"loss", "gckt", "lckt"} <= set(first) and not {"ce", "train_top1", "test_top1", "best_top1"} & set(first)
    assert float(first["loss"]) == pytest.approx(-0.8 * float(first["gckt"]) + 0.05 * float(first["lckt"]), rel=1e-5)


def test_repeated_command_trains_nothing_and_more_seeds_resume(finished, monkeypatch, capsys):
    home, argv = finished
    before = rows_of(home)
    monkeypatch.setattr("wcord_fast.train.loop.one_epoch", None)
    assert main([*argv, f"--output-dir={home}"]) == 0
    assert rows_of(home) == before


def test_an_interrupted_student_goes_on_where_it_stopped(finished, tmp_path, monkeypatch):
    home, argv = finished
    from wcord_fast.train import loop

    def once(run, optimizer, epoch):
        if run.name == "crd" and epoch == 1:
            raise KeyboardInterrupt
        return one_epoch(run, optimizer, epoch)

    one_epoch = loop.one_epoch
    monkeypatch.setattr(loop, "one_epoch", once)
    again = [*argv[:-1], "--methods=crd", f"--output-dir={tmp_path}"]
    assert main(again) == 130
    monkeypatch.setattr(loop, "one_epoch", one_epoch)
    assert main(again) == 0
    ends = [torch.load(d / "resnet8" / "seed0" / "crd" / "student.pt", weights_only=True) for d in (home, tmp_path)]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_probe_equals_logistic_regression():
    """Scikit-learn's regression on these standardised features has the same minimum."""
    from sklearn.linear_model import LogisticRegression

    g = torch.Generator().manual_seed(0)
    y = torch.arange(90) % 3
    x = torch.randn(90, 6, generator=g) * torch.tensor([1.0, 5, 0.1, 1, 1, 1]) + 0.4 * F.one_hot(y, 6)
    x_test = torch.randn(300, 6, generator=g) * torch.tensor([1.0, 5, 0.1, 1, 1, 1]) + 0.4 * F.one_hot(
        torch.arange(300) % 3, 6
    )
    mean, deviation = x.mean(0), x.std(0, correction=0)
    theirs = LogisticRegression(C=1 / (linear_probe.DECAY * 90), max_iter=2000, tol=1e-8)
    theirs.fit(((x - mean) / deviation).numpy(), y.numpy())
    want = 100 * theirs.score(((x_test - mean) / deviation).numpy(), (torch.arange(300) % 3).numpy())
    assert 40 < want < 95
    assert linear_probe.probe((x, y), (x_test, torch.arange(300) % 3), 3) == pytest.approx(want, abs=0.4)


def test_blocks_are_the_last_four_maps():
    torch.manual_seed(0)
    net = models.create("ResNet50", num_classes=3).train()
    x = torch.randn(3, 3, 8, 8)
    batches = [(x[:2], torch.tensor([0, 1]), None), (x[2:], torch.tensor([2]), None)]
    blocks, labels = linear_probe.block_features(net, batches, "fp32")
    assert net.training and labels.tolist() == [0, 1, 2]
    with torch.no_grad():
        features, _ = net.eval()(x, return_features=True)
    widths = [256 * 4, 512 * 1, 1024 * 1, 2048]
    assert [tuple(b.shape) for b in blocks] == [(3, w) for w in widths]
    for block, feature, side in zip(blocks, features[1:-1], (2, 1, 1, 1), strict=True):
        torch.testing.assert_close(block, F.adaptive_avg_pool2d(feature, side).flatten(1))
    with pytest.raises(ValueError, match="at least 4 feature maps to probe, got 1"):
        tapped = models.Tapped(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3)), features="0")
        linear_probe.block_features(tapped, batches, "fp32")


WRONG = {
    "--output-dir=": r"output_dir: expected the name of a file or a folder, got ''",
    "--methods=ce": r"'ce' needs labels",
    "--methods=wcord+kd": r"has a KD term",
    "--labelled=0": r"labelled: expected a fraction above 0 and at most 1, got 0",
    "--labelled=0.001": r"labelled: a fraction of 0.001 leaves a class without an image",
    "--labeled=0.1": r"unknown option '--labeled'; did you mean '--labelled'\?",
    "--data=imagenet": r"data: this task holds its images in memory",
    "--student=resnet9": r"student: .*did you mean",
}


@pytest.mark.parametrize("word", WRONG)
def test_mistakes_in_options_are_named(word, tmp_path, capsys):
    assert main(["crossmodal", "--data=digits", f"--output-dir={tmp_path}", word, "--quiet"]) == 2
    output = capsys.readouterr().err
    assert re.search(WRONG[word], output) and len(output.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_dry_run_and_help(capsys):
    assert main(["crossmodal", "--dry-run", "--seeds=1,2"]) == 0
    output = capsys.readouterr().out
    assert "data: cifar100" in output and "seeds:\n  - 1\n  - 2" in output
    assert main(["crossmodal", "--help"]) == 0
    assert "--labelled" in capsys.readouterr().out


@pytest.mark.skipif(not CIFAR or not CIFAR.exists(), reason="CIFAR100 names no .npz of CIFAR-100")
def test_on_cifar100(tmp_path):
    """Colours: a teacher of L, students of ab, on a small part of the set."""
    with np.load(CIFAR) as whole:
        part = {f"train_{kind}": whole[f"train_{kind}"][::20] for kind in ("images", "labels")}
        part |= {f"test_{kind}": whole[f"test_{kind}"][::33] for kind in ("images", "labels")}
    np.savez(tmp_path / "part.npz", **part)
    argv = ["crossmodal", f"--data-dir={tmp_path / 'part.npz'}", "--labelled=0.2", "--epochs=1", "--threads=1"]
    argv += ["--teacher=resnet8", "--student=resnet8", "--methods=wcord", "--quiet", "--no-tensorboard"]
    assert main([*argv, f"--output-dir={tmp_path}"]) == 0
    rows = rows_of(tmp_path)
    assert list(rows) == ["random", "scratch", "wcord"] and rows["random"][0] > 4  # chance is 2 %
    student = torch.load(tmp_path / "resnet8" / "seed0" / "wcord" / "student.pt", weights_only=True)
    teacher = torch.load(tmp_path / "teachers" / "resnet8" / "teacher" / "teacher.pt", weights_only=True)
    assert student["conv1.weight"].shape[1] == 2 and teacher["conv1.weight"].shape[1] == 1
