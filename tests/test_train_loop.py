"""The loop: exact resume, gradients, right metrics, and a stop when a loss is not finite."""

import csv
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.tensorboard import SummaryWriter  # noqa: F401  (imported here, so that its second is not a test's)

from tests.train_tiny import CLASSES, TEST, TRAIN, make_run
from wcord_fast.distill import Outputs
from wcord_fast.train import checkpoint, loop, step
from wcord_fast.train.evaluation import evaluate
from wcord_fast.train.logs import TIMING
from wcord_fast.train.loop import fit
from wcord_fast.train.meters import Meters, NonFiniteLoss
from wcord_fast.train.step import backward, detached


def metrics(history):
    return [{k: v for k, v in row.items() if k not in TIMING} for row in history]


def everything(directory):
    state = checkpoint.load(directory / "checkpoint.pt")
    state["history"] = metrics(state["history"])
    return state


def assert_equal(one, other, at=""):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one.nan_to_num(7.5), other.nan_to_num(7.5)), at
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), at
        for key in one:
            assert_equal(one[key], other[key], f"{at}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), at
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f"{at}[{i}]")
    else:
        assert one == other, at


class Killed(BaseException):
    pass


def die_in_step(monkeypatch, number):
    """Let the loop raise Killed in place of its training step `number`, counted from 1 over epochs."""
    train_step, steps = loop.train_step, itertools.count(1)

    def step(*args):
        if next(steps) == number:
            raise Killed
        return train_step(*args)

    monkeypatch.setattr(loop, "train_step", step)


@pytest.mark.parametrize(
    "method, config",
    [
        ("wcord+kd", {}),
        ("wcord", {"accumulate": 2}),
        ("crd", {"crd": {"num_negatives": 9, "z": "ema"}}),
    ],
)
def test_a_run_that_died_in_mid_epoch_resumes_exactly(tmp_path, monkeypatch, method, config):
    fit(make_run(tmp_path / "whole", method, epochs=4, **config))
    dying = make_run(tmp_path / "broken", method, epochs=4, **config)
    die_in_step(monkeypatch, 8)  # three steps an epoch: the second step of the third epoch
    with pytest.raises(Killed):
        fit(dying)
    monkeypatch.undo()
    torch.rand(5)  # the new process's generator is anywhere
    resumed = make_run(tmp_path / "broken", method, epochs=4, **config)
    fit(resumed)
    assert len(resumed.history) == 4
    assert_equal(everything(tmp_path / "whole"), everything(tmp_path / "broken"))
    banks = [k for k in everything(tmp_path / "whole")["method"] if "memory" in k]
    assert len(banks) == 2


def test_a_finished_run_is_not_trained_again(tmp_path, caplog):
    first = fit(make_run(tmp_path))
    with caplog.at_level("INFO", logger="wcord_fast"):
        assert fit(make_run(tmp_path)) == first
    assert "finished earlier, 2 epochs" in caplog.text
    again = make_run(tmp_path, restart=True)
    assert metrics(fit(again)) == metrics(first)  # the same seed
    assert again.history[0]["seconds"] != first[0]["seconds"]


def test_gradient_equals_one_joint_backward(tmp_path):
    run = make_run(tmp_path, "wcord+kd")
    run.student.double(), run.method.double(), run.teacher.double()
    batch = next(run.train.epoch(0))
    images = batch.images.double()
    with torch.no_grad():
        teacher = Outputs(*run.teacher(images, return_features=True))
    run.method.eval()  # so that the banks are equal for both losses
    run.student.eval()

    def objective():
        student = Outputs(*run.student(images, return_features=True))
        return student, F.cross_entropy(student.logits, batch.labels)

    student, ce = objective()
    (ce + run.method(student, teacher, batch).value).backward()
    joint = [p.grad.clone() for p in run.parameters()]
    for p in run.parameters():
        p.grad = None
    student, ce = objective()
    leaves = Outputs(*detached(student))
    run.method(leaves, teacher, batch).value.backward()
    backward(ce, student, leaves)
    for p, expected in zip(run.parameters(), joint, strict=True):
        torch.testing.assert_close(p.grad, expected, rtol=1e-5, atol=1e-8)


def test_metrics_and_logs_hold_the_right_numbers(tmp_path):
    run = make_run(tmp_path, "wcord+kd", log_grad_norms=True, tensorboard=True, log_every=2)
    history = fit(run)
    for i, row in enumerate(history):
        weighted = row["ce"] - 0.8 * row["gckt"] + 0.05 * row["lckt"] + row["kd"]
        assert row["loss"] == pytest.approx(weighted, rel=1e-5)
        assert row["epoch"] == i + 1 and row["lr"] == pytest.approx([0.05, 0.005][i])
        grad_shares = [row[f"grad_{term}"] for term in ("ce", "gckt", "lckt", "kd")]
        assert sum(grad_shares) == pytest.approx(1.0) and min(grad_shares) > 0
        assert 0 < row["loss_share"] < 1
        assert row["images_per_s"] == pytest.approx(TRAIN / row["seconds"])
        assert row["best_top1"] == max(r["test_top1"] for r in history[: i + 1])
        assert row["train_top1"] * TRAIN / 100 == pytest.approx(round(row["train_top1"] * TRAIN / 100))
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [{k: float(v) for k, v in row.items()} for row in rows] == [
        {k: float(v) for k, v in row.items()} for row in history
    ]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    for name in ("ce", "gckt", "lckt", "kd", "test_top1", "lr", "grad_ce", "images_per_s"):
        actual = [(e.step, e.value) for e in events.Scalars(name)]
        assert actual == [(row["epoch"], pytest.approx(row[name], rel=1e-6)) for row in history]


def test_accuracy_equals_a_count_by_hand(tmp_path):
    run = make_run(tmp_path)
    tested = evaluate(run.student, run.test)
    run.student.eval()
    images = torch.cat([images for images, _, _ in run.test])
    labels = run.test.dataset.test_labels
    with torch.no_grad():
        logits = run.student(images)
    hits = sum(int(row.argmax()) == int(label) for row, label in zip(logits, labels, strict=True))
    assert tested["test_top1"] == pytest.approx(100 * hits / TEST)
    assert tested["test_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert tested["test_top5"] == 100.0  # there are only four classes
    run.student.train()
    evaluate(run.student, run.test)
    assert run.student.training


def test_plain_training_learns_the_stripes(tmp_path):
    history = fit(make_run(tmp_path, "ce", epochs=12, milestones=[0.9]))
    assert history[-1]["ce"] < 0.6 * math.log(CLASSES) and history[-1]["test_top1"] > 60
    assert history[-1]["loss"] == history[-1]["ce"] and history[-1]["loss_share"] == 0
    exported = torch.load(tmp_path / "student.pt", weights_only=True)
    assert_equal(exported, dict(everything(tmp_path)["student"]))


def poison(monkeypatch, network, layer):
    """NaN weights from the second step of the second epoch on."""
    steps, real = [], loop.train_step

    def poisoned(run, *args):  # three steps an epoch: the second step of the second epoch
        steps.append(1)
        if len(steps) == 5:
            with torch.no_grad():
                getattr(getattr(run, network), layer).weight.fill_(math.nan)
        return real(run, *args)

    monkeypatch.setattr(loop, "train_step", poisoned)


@pytest.mark.parametrize(
    "method, network, layer, term",
    [
        ("ce", "student", "fc", "ce"),
        ("wcord", "student", "fc", "ce"),
        ("wcord", "student", "conv1", "ce"),  # NaN features, which the loss itself refuses
    ],
)
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    tmp_path, monkeypatch, method, network, layer, term
):
    poison(monkeypatch, network, layer)
    with pytest.raises(NonFiniteLoss, match=rf"term '{term}' became NaN .* in step 2 of epoch 2; .*--clip-grad"):
        fit(make_run(tmp_path, method, epochs=3))
    assert checkpoint.load(tmp_path / "checkpoint.pt")["epoch"] == 1


def test_logits_of_the_teacher_that_are_nan_stop_the_run_and_keep_the_checkpoint(tmp_path, monkeypatch):
    poison(monkeypatch, "teacher", "fc")
    with pytest.raises(ValueError, match="teacher_logits: row 0"):
        fit(make_run(tmp_path, "kd", epochs=3))
    assert checkpoint.load(tmp_path / "checkpoint.pt")["epoch"] == 1


def test_clipping_limits_the_step(tmp_path):
    config = {"lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "milestones": []}
    run = make_run(tmp_path, "wcord", epochs=1, batch_size=TRAIN, clip_grad=0.01, **config)
    before = [p.detach().clone() for p in run.parameters()]
    fit(run)
    moved = math.sqrt(
        sum(float((p.detach() - b).square().sum()) for p, b in zip(run.parameters(), before, strict=True))
    )
    assert moved == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("accumulate", [2, 4, 9])
def test_accumulated_gradients_equal_those_of_the_averaged_loss(tmp_path, accumulate):
    """Plain SGD without momentum: the weights move by lr times the mean of the group's gradients."""
    config = {"lr": 0.5, "momentum": 0.0, "weight_decay": 0.0, "milestones": [], "batch_size": 10}
    run = make_run(tmp_path / "run", "ce", epochs=1, accumulate=accumulate, **config)
    other = make_run(tmp_path / "other", "ce", epochs=1, **config)
    fit(run)
    batches = list(other.train.epoch(0))  # five, the last one smaller
    other.student.train()
    for begin in range(0, len(batches), accumulate):
        group = batches[begin : begin + accumulate]
        losses = [F.cross_entropy(other.student(b.images), b.labels) for b in group]
        grads = torch.autograd.grad(torch.stack(losses).mean(), list(other.student.parameters()))
        with torch.no_grad():
            for p, grad in zip(other.student.parameters(), grads, strict=True):
                p -= 0.5 * grad
    for p, expected in zip(run.student.parameters(), other.student.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-4, atol=1e-6)


def test_every_micro_batch_is_a_step_of_the_banks(tmp_path):
    run = make_run(tmp_path, "crd", epochs=1, accumulate=3)
    fit(run)
    assert len(run.train) in run.method.state_dict()["crd.contrast.sampler.state"].tolist()  # seed and step


def test_the_methods_own_parameters_are_trained(tmp_path):
    run = make_run(tmp_path, "crd", epochs=1)
    before = {name: p.detach().clone() for name, p in run.method.named_parameters()}
    teacher = {name: v.clone() for name, v in run.teacher.state_dict().items()}
    fit(run)
    assert len(before) == 4 and all(not torch.equal(p, before[n]) for n, p in run.method.named_parameters())
    assert all(torch.equal(v, teacher[n]) for n, v in run.teacher.state_dict().items())


def test_bf16_autocast_trains(tmp_path):
    row = fit(make_run(tmp_path / "half", "wcord+kd", epochs=1, precision="bf16"))[0]
    full = fit(make_run(tmp_path / "full", "wcord+kd", epochs=1))[0]
    assert row["ce"] != full["ce"] and row["ce"] == pytest.approx(full["ce"], rel=0.1)
    assert all(p.dtype == torch.float32 for p in make_run(tmp_path / "half", "wcord+kd", epochs=1).parameters())


def test_weights_spoilt_by_the_last_step_are_not_saved(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", epochs=2)
    fit(run)
    kept = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    train_epoch = loop.train_epoch

    def spoilt(run, optimizer, epoch):
        row = train_epoch(run, optimizer, epoch)
        next(run.student.parameters()).data.view(-1)[0] = math.nan  # as a step of a gradient that is NaN does
        return row

    monkeypatch.setattr(loop, "train_epoch", spoilt)
    with pytest.raises(NonFiniteLoss, match=r"student: .* holds NaN or infinite values after epoch 3; try a lower lr"):
        longer = make_run(tmp_path / "run", epochs=3)
        longer.extend = True
        fit(longer)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == kept
    assert len(longer.history) == 2


def test_rows_without_a_label_are_left_out(tmp_path):
    run = make_run(tmp_path / "run", epochs=1)
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, -100, 2, -100, 3])
    known = labels >= 0
    batches = [(images, labels, torch.arange(6)), (images, torch.full((6,), -100), torch.arange(6))]
    measured = evaluate(run.student, batches)
    assert measured == pytest.approx(evaluate(run.student, [(images[known], labels[known], torch.arange(4))]))
    with pytest.raises(ValueError, match="at least one with a label"):
        evaluate(run.student, batches[1:])
    logits = run.student(images)
    for smoothing in (0.0, 0.1):
        ours = step.class_loss(logits, labels, step.labelled(labels), smoothing)
        torch.testing.assert_close(ours, F.cross_entropy(logits, labels, label_smoothing=smoothing))
        none = torch.full((6,), -100)
        (grad,) = torch.autograd.grad(
            step.class_loss(logits, none, step.labelled(none), smoothing), logits, retain_graph=True
        )
        assert not grad.any()


def test_means_over_labels_count_labelled_rows_only():
    meters = Meters(0)
    for value, known in ((2.0, 4), (5.0, 1), (0.0, 0)):
        values = {"ce": torch.tensor(value), "kd": torch.tensor(value)}
        meters.add(4, values, torch.tensor(known, dtype=torch.float64))
    assert meters.means() == {"ce": (2 * 4 + 5 * 1) / 5, "kd": (2 + 5) / 3}


def test_a_buffer_that_is_infinite_by_design_stops_no_run(tmp_path):
    run = make_run(tmp_path / "run", epochs=1)
    run.student.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    fit(run)
    loop.require_finite_weights(run.student, 0)
    statistics = next(m for m in run.student.modules() if isinstance(m, torch.nn.BatchNorm2d))
    statistics.running_var[0] = math.inf
    with pytest.raises(NonFiniteLoss, match=r"student: .*running_var holds NaN or infinite"):
        loop.require_finite_weights(run.student, 0)
