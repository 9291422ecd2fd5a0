"""Optimisers by name, warm-up and cosine, label smoothing, mixing, the average: right, and resumed to the bit."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.test_train_loop import Killed, assert_equal, die_in_step, everything, metrics
from tests.train_tiny import CLASSES, TRAIN, make_run
from wcord_fast import models
from wcord_fast.batch import Batch
from wcord_fast.cli.config import Config
from wcord_fast.cli.workbench import Workbench
from wcord_fast.train import Recipe, checkpoint, loop
from wcord_fast.train.average import Average
from wcord_fast.train.checkpoint import CheckpointError
from wcord_fast.train.loop import fit
from wcord_fast.train.mix import mix
from wcord_fast.train.recipe import make_optimizer
from wcord_fast.train.schedule import learning_rate
from wcord_fast.train.step import gradients

EVERYTHING = {
    "optimizer": "AdamW", "lr": 0.01, "schedule": "cosine", "warmup": 0.5, "label_smoothing": 0.1, "mixup": 0.4,
    "cutmix": 1.0, "ema": 0.9,
}  # fmt: skip


class Plain(torch.optim.SGD):
    """An optimiser of a user's."""

    def __init__(self, params, lr, weight_decay=0.0):
        super().__init__(params, lr=lr, weight_decay=weight_decay)


def test_optimisers_by_name_and_by_dotted_path():
    parameters = [nn.Parameter(torch.zeros(2))]
    recipe = {"lr": 0.3, "momentum": 0.7, "weight_decay": 0.01}
    sgd, adamw, own = (
        make_optimizer(recipe | {"optimizer": name}, parameters)
        for name in ("SGD", "torch.optim.AdamW", f"{__name__}.Plain")
    )
    assert type(sgd) is torch.optim.SGD and sgd.defaults["momentum"] == 0.7 and sgd.defaults["lr"] == 0.3
    assert type(adamw) is torch.optim.AdamW and adamw.defaults["weight_decay"] == 0.01
    assert type(own) is Plain and own.defaults["momentum"] == 0
    assert make_optimizer(recipe | {"optimizer": "SGD"}, parameters, 0.5).defaults["lr"] == 0.5


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"optimizer": "AdamV"}, ValueError, "optimizer: expected one of .*; did you mean 'Adam"),
        ({"optimizer": "torch.optim.AdamV"}, ValueError, "optimizer: 'torch.optim.AdamV' cannot be imported"),
        ({"optimizer": "torch.nn.Linear"}, TypeError, "optimizer: expected a torch.optim.Optimizer, got"),
        ({"optimizer": "LBFGS"}, ValueError, "optimizer: expected one that steps without a closure, got 'LBFGS'"),
        ({"optimizer": 3}, TypeError, "optimizer: expected a str, got int"),
        ({"schedule": "cosin"}, ValueError, "schedule: .*did you mean 'cosine'"),
        ({"warmup": -1}, ValueError, "warmup: expected a finite number >= 0"),
        ({"label_smoothing": 1}, ValueError, r"label_smoothing: expected a number in \[0, 1\)"),
        ({"ema": 1.0}, ValueError, r"ema: expected a number in \[0, 1\)"),
        ({"mixup": math.nan}, ValueError, "mixup"),
        *(
            ({name: "no"}, TypeError, f"{name}: expected True or False, got 'no'")
            for name in ("channels_last", "compile", "cuda_graph", "gradient_checkpointing")
        ),
        ({"compile": 1}, TypeError, "compile: expected True or False, got 1"),
        ({"precision": "fp16"}, ValueError, "precision: expected one of 'fp32', 'bf16', got 'fp16'"),
        ({"cuda_graph": True, "cutmix": 1.0}, ValueError, "cuda_graph: a replay repeats its draws"),
    ],
)
def test_unusable_options_are_named(options, error, words):
    with pytest.raises(error, match=words):
        Recipe(**options)


def test_unused_options_do_not_enter_a_runs_record():
    """Checkpoints from before these options existed are continued."""
    assert not EVERYTHING.keys() & Recipe().described().keys() - {"lr"}
    assert Recipe(**EVERYTHING).described().items() >= EVERYTHING.items()


def test_warm_up_and_cosine():
    recipe = {"epochs": 10, "lr": 2.0, "schedule": "cosine", "warmup": 2}
    assert [learning_rate(recipe, 0, part) for part in (0, 0.5, 1)] == pytest.approx([0, 0.5, 1])
    assert learning_rate(recipe, 2) == 2.0
    for epoch, part in ((3, 0.25), (6, 0.0), (9, 0.5)):
        expected = 1 + math.cos(math.pi * (epoch + part - 2) / 8)
        assert learning_rate(recipe, epoch, part) == pytest.approx(expected)
    assert learning_rate(recipe, 9, 1.0) == pytest.approx(0)
    steps = {"epochs": 10, "lr": 2.0, "warmup": 0.1, "milestones": [0.5], "lr_decay": 0.1}
    assert [learning_rate(steps, e, 0.5) for e in (0, 1, 4, 5)] == pytest.approx([1.0, 2.0, 2.0, 0.2])


def test_rate_is_set_at_every_step(tmp_path, monkeypatch):
    run, seen = make_run(tmp_path, epochs=2, schedule="cosine", warmup=0.25, lr=0.4), []
    real = loop.train_step

    def watched(run, optimizer, *rest):
        seen.append(optimizer.param_groups[0]["lr"])
        return real(run, optimizer, *rest)

    monkeypatch.setattr(loop, "train_step", watched)
    fit(run)
    assert seen == pytest.approx([learning_rate(run.recipe, e, (s + 1) / 3) for e in range(2) for s in range(3)])
    assert seen[0] == pytest.approx(0.4 * 2 / 3) and seen[-1] == pytest.approx(0)


def test_label_smoothing_equals_torch(tmp_path):
    run = make_run(tmp_path, label_smoothing=0.2, epochs=1)
    batch = next(iter(run.train.epoch(0)))
    run.student.eval()
    values, _ = gradients(run, batch, loop.Stopwatch(torch.device("cpu")))
    assert float(values["ce"]) == pytest.approx(
        float(F.cross_entropy(run.student(batch.images), batch.labels, label_smoothing=0.2))
    )


@pytest.mark.parametrize("mixup, cutmix", [(0.4, 0.0), (0.0, 1.0), (0.5, 0.5)])
def test_every_image_keeps_the_larger_share(mixup, cutmix):
    torch.manual_seed(3)
    labels = torch.arange(6)
    images = labels.float()[:, None, None, None].expand(6, 2, 8, 8).contiguous()  # an image is its own label
    fractions = []
    for _ in range(40):
        mixed, blend = mix(Batch(images, labels, labels), mixup, cutmix)
        assert torch.equal(images[:, 0, 0, 0], labels.float()) and torch.equal(mixed.labels, labels)
        assert 0 <= blend.fraction <= 0.5 and sorted(blend.labels.tolist()) == labels.tolist()
        expected = (1 - blend.fraction) * labels + blend.fraction * blend.labels
        torch.testing.assert_close(mixed.images.mean((1, 2, 3)), expected, atol=1e-5, rtol=1e-5)
        fractions.append(blend.fraction)
        pasted = bool((mixed.images == mixed.images.round()).all())
        assert pasted or cutmix == 0 or mixup > 0
    assert len({round(fraction, 9) for fraction in fractions}) > 5 and max(fractions) > 0.2


def test_the_cross_entropy_of_a_mixed_batch_has_both_labels(tmp_path):
    run = make_run(tmp_path, mixup=0.4, epochs=1)
    batch = next(iter(run.train.epoch(0)))
    torch.manual_seed(1)
    mixed, blend = mix(batch, 0.4, 0.0)
    run.student.eval()
    values, _ = gradients(run, mixed, loop.Stopwatch(torch.device("cpu")), blend=blend)
    target = (1 - blend.fraction) * F.one_hot(batch.labels, CLASSES) + blend.fraction * F.one_hot(blend.labels, CLASSES)
    assert float(values["ce"]) == pytest.approx(float(F.cross_entropy(run.student(mixed.images), target)), rel=1e-5)
    assert blend.fraction > 0.01


def test_the_average_follows_the_network():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = Average(network, 0.5)
    expected = {name: value.clone().double() for name, value in network.state_dict().items()}
    for step in range(6):
        with torch.no_grad():
            for p in network.parameters():
                p.add_(torch.randn_like(p))
        network(torch.randn(4, 3))
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            floating = value.is_floating_point()
            expected[name] = decay * expected[name] + (1 - decay) * value if floating else value.double()
    actual = average.network.state_dict()
    assert all(torch.allclose(actual[name].double(), value, atol=1e-5) for name, value in expected.items())
    assert int(actual["1.num_batches_tracked"]) == 6
    again = Average(network, 0.5)
    again.load_state_dict(average.state_dict())
    assert again.steps == 6 and torch.equal(again.network[0].weight, average.network[0].weight)


def test_the_average_follows_a_buffer_that_the_network_replaces():
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(3))

        def forward(self, x):
            self.mean = 0.5 * self.mean + 0.5 * x.mean(0)
            return x - self.mean

    network = Centred()
    average, expected = Average(network, 0.5), torch.zeros(3)
    for step in range(4):
        network(torch.randn(5, 3))
        average.update()
        expected = expected.lerp(network.mean, 1 - min(0.5, (1 + step) / (10 + step)))
    torch.testing.assert_close(average.network.mean, expected)


def test_the_average_takes_buffers_that_appear_or_change_their_size():
    class Growing(nn.Linear):
        def __init__(self):
            super().__init__(3, 2)
            self.register_buffer("last", None)

        def forward(self, x):
            self.last = x.mean(1).detach()
            return super().forward(x)

    network = Growing()
    average = Average(network, 0.5)
    for size in (4, 4, 5):
        network(torch.randn(size, 3))
        average.update()
    assert torch.equal(average.network.last, network.last) and average.network.last is not network.last


def test_the_average_is_tested_and_written(tmp_path):
    run = make_run(tmp_path, ema=0.9, epochs=2)
    last = fit(run)[-1]
    saved = torch.load(tmp_path / "student_ema.pt", weights_only=True)
    assert_equal(saved, dict(run.average.network.state_dict()))
    assert not torch.equal(saved["fc.weight"], run.student.fc.weight)
    run.average.network.eval()
    hits = sum(int((run.average.network(x).argmax(1) == y).sum()) for x, y, _ in run.test)
    assert last["ema_top1"] == pytest.approx(100 * hits / len(run.test.dataset.test_labels))
    assert run.average.steps == 2 * len(run.train) and "ema_top1" in (tmp_path / "metrics.csv").read_text()


def test_students_begin_with_the_weights_of_a_file(tmp_path):
    torch.manual_seed(7)
    begun = models.create("resnet8", 10, in_channels=1)
    torch.save({"state_dict": begun.state_dict()}, tmp_path / "begun.pt")
    small = {"data": "digits", "image_size": 8, "limit_train": 40, "student": "resnet8", "epochs": 1, "lr": 1e-12}
    config = {**small, "init_student": str(tmp_path / "begun.pt"), "output_dir": str(tmp_path), "tensorboard": False}
    bench = Workbench(Config(**config))
    trained = bench.student("ce", None).network
    torch.testing.assert_close(trained.fc.weight, begun.fc.weight)
    torch.save(models.create("resnet8", 10, in_channels=1).state_dict(), tmp_path / "begun.pt")
    with pytest.raises(CheckpointError, match="another configuration: init was"):
        bench.student("ce", None)
    torch.save(models.create("resnet14", 10, in_channels=1).state_dict(), tmp_path / "begun.pt")
    with pytest.raises(CheckpointError, match="not the weights of --student resnet8"):
        bench.student("ce", None)
    with pytest.raises(ValueError, match="init_student: expected a file; 'resnet8' has no weights"):
        Config(**{**small, "init_student": "pretrained"})
    with pytest.raises(ValueError, match="init_teacher: expected a teacher that is trained"):
        Config(**small, init_teacher="a.pt", teacher_checkpoint="b.pt")


@pytest.mark.parametrize("size", [224, None])
def test_pretrained_weights_for_another_size_are_told(monkeypatch, caplog, size):
    class Sized(nn.Linear):
        def __init__(self, size):
            super().__init__(2, 2)
            self.prepare = nn.Identity()
            self.prepare.size = size

    bench = Workbench(Config(data="digits", image_size=8, limit_train=40, student="resnet8"))
    bench.config.student = "torchvision:resnet18"
    monkeypatch.setattr(bench, "_network", lambda name, pretrained: Sized(size))
    network = Sized(None)
    bench._load_initial("student", network, "pretrained")
    told = "images of 224 pixels a side; --student torchvision:resnet18@224 resizes them" in caplog.text
    assert told == (size == 224)


@pytest.mark.parametrize("method", ["wcord+kd", "ft"])
def test_run_with_all_recipe_options_resumes_exactly(tmp_path, monkeypatch, method):
    fit(make_run(tmp_path / "whole", method, epochs=3, **EVERYTHING))
    die_in_step(monkeypatch, 5)
    with pytest.raises(Killed):
        fit(make_run(tmp_path / "broken", method, epochs=3, **EVERYTHING))
    monkeypatch.undo()
    torch.rand(5)
    resumed = make_run(tmp_path / "broken", method, epochs=3, **EVERYTHING)
    assert len(metrics(fit(resumed))) == 3 and TRAIN
    assert_equal(everything(tmp_path / "whole"), everything(tmp_path / "broken"))
    assert checkpoint.load(tmp_path / "whole" / "checkpoint.pt")["average"]["steps"] == 9


def test_a_tied_weight_is_averaged_once():
    network = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2, bias=False), "b": torch.nn.Linear(2, 2, bias=False)})
    network["b"].weight = network["a"].weight
    average = Average(network, 0.1)
    start = network["a"].weight.detach().clone()
    with torch.no_grad():
        network["a"].weight += 1
    average.update()
    torch.testing.assert_close(average.network["a"].weight.detach(), start + 0.9)
    assert average.network["b"].weight is average.network["a"].weight
