"""A resumed run needs equal data and restores every random generator."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from tests.test_train_loop import assert_equal, everything
from wcord_fast.cli.config import Config
from wcord_fast.cli.main import main
from wcord_fast.cli.workbench import Workbench
from wcord_fast.train import checkpoint
from wcord_fast.train.checkpoint import CheckpointError
from wcord_fast.train.evaluation import evaluate

TINY = {"image_size": 8, "batch_size": 10, "tensorboard": False, "quiet": True, "epochs": 1, "limit_train": 40}
TINY |= {"teacher": "resnet8", "student": "resnet8"}


def images(root, seed, per_class=10):
    rng = np.random.default_rng(seed)
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(root / name / f"{i:02d}.png")


@pytest.mark.parametrize("method", ["ce", "wcord"])
def test_other_training_images_are_refused(tmp_path, capsys, method):
    argv = ["distill", "--data=folder", f"--data-dir={tmp_path / 'data'}", "--image-size=8", f"--methods={method}"]
    argv += ["--teacher=resnet8", "--student=resnet8", "--epochs=1", "--batch-size=8", "--no-tensorboard", "--quiet"]
    argv += [f"--output-dir={tmp_path / 'out'}"]
    images(tmp_path / "data", seed=0)
    assert main(argv) == 0
    assert main(argv) == 0  # unchanged data: nothing to do
    assert main([*argv, "--limit-student=8"]) == 1
    assert "--limit-student) was None, now 8" in capsys.readouterr().err
    images(tmp_path / "data", seed=1)
    capsys.readouterr()
    assert main(argv) == 1
    output = capsys.readouterr().err
    assert "was made with another configuration: data.fingerprint was '" in output and len(output.splitlines()) == 1
    images(tmp_path / "data", seed=0, per_class=15)
    assert main(argv) == 1
    assert "data.train_images was 16, now 24" in capsys.readouterr().err


def test_checkpoint_without_a_fingerprint_is_refused(tmp_path):
    bench = Workbench(Config(**TINY, output_dir=str(tmp_path)))
    bench.student("ce", None)
    path = tmp_path / "ce" / checkpoint.CURRENT
    state = checkpoint.load(path)
    del state["spec"]["data"]["fingerprint"]
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"another configuration: data.fingerprint was None, now '"):
        bench.student("ce", None)


def test_fingerprint_covers_every_image_and_label():
    data = Workbench(Config(**TINY)).data
    parts = {name: getattr(data, name) for name in ("train_images", "train_labels", "test_images", "test_labels")}
    for name, value in parts.items():
        other = value.clone()
        other.view(-1)[-1] = other.view(-1)[-1] ^ 1
        assert type(data)(**{**fields_of(data), name: other}).fingerprint != data.fingerprint
        assert type(data)(**{**fields_of(data), name: value.clone()}).fingerprint == data.fingerprint


def fields_of(data):
    return {name: getattr(data, name) for name in data.__dataclass_fields__}


def test_a_teacher_trained_on_more_of_the_images_is_accepted(tmp_path):
    Workbench(Config(**{**TINY, "limit_train": 60}, output_dir=str(tmp_path / "all"))).teacher()
    config = Config(**TINY, output_dir=str(tmp_path / "few"), teacher_checkpoint=str(tmp_path / "all" / "teacher"))
    assert len(Workbench(config).teacher().history) == 1


@pytest.mark.parametrize("spec", [None, [1], {}, {"model": "resnet8"}])
def test_incomplete_checkpoint_is_refused_by_teacher_and_evaluate(tmp_path, capsys, spec):
    Workbench(Config(**TINY, output_dir=str(tmp_path))).teacher()
    path = tmp_path / "teacher" / checkpoint.CURRENT
    torch.save({**torch.load(path, weights_only=True), "spec": spec}, path)
    with pytest.raises(CheckpointError, match=r"checkpoint.pt: an incomplete checkpoint"):
        Workbench(Config(**TINY, teacher_checkpoint=str(path))).teacher()
    assert main(["evaluate", str(path)]) == 1
    assert "checkpoint.pt: an incomplete checkpoint" in capsys.readouterr().err


def test_a_teachers_weights_must_be_finite(tmp_path):
    bench = Workbench(Config(**TINY, output_dir=str(tmp_path)))
    weights = bench.teacher().network.state_dict()
    weights["layer1.0.conv1.weight"][0] = float("inf")
    torch.save(weights, tmp_path / "theirs.pth")
    with pytest.raises(CheckpointError, match=r"theirs.pth: layer1.0.conv1.weight holds NaN or infinite"):
        Workbench(Config(**TINY, teacher_checkpoint=str(tmp_path / "theirs.pth"))).teacher()


def test_every_generator_is_seeded(tmp_path):
    for name in ("one", "two"):
        np.random.rand(7), random.random(), torch.rand(3)
        Workbench(Config(**TINY, seed=2**40 + 5, output_dir=str(tmp_path / name))).student("ce", None)
    assert_equal(everything(tmp_path / "one" / "ce")["rng"], everything(tmp_path / "two" / "ce")["rng"])


def test_evaluation_changes_no_modules_mode():
    bench = Workbench(Config(**TINY))
    network = bench._network("resnet8").train()
    network.layer1[0].bn1.eval()
    evaluate(network, bench.test)
    assert not network.layer1[0].bn1.training and network.layer1[0].conv1.training and network.training
