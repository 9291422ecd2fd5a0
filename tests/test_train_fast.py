"""Options that make a step faster change no result: compiled networks, channels_last, the step as a graph."""

import csv
import shutil
import time

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from tests.test_train_loop import assert_equal, everything
from tests.train_tiny import CLASSES, TRAIN, make_run
from wcord_fast.cli.config import Config
from wcord_fast.train import cuda_graph, loop
from wcord_fast.train.cuda_graph import WARM_UP, GraphedStep
from wcord_fast.train.loop import fit
from wcord_fast.train.step import gradients


def close(one, other):
    """Two runs have equal losses and weights, up to another order of additions in a few steps."""
    for a, b in zip(one.history, other.history, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
        assert a["test_loss"] == pytest.approx(b["test_loss"], rel=1e-2)
    weights = other.student.state_dict()
    for name, value in one.student.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=1e-2, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(scope="module")
def eager(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("eager"), "wcord+kd", epochs=1)
    fit(run)
    return run


class Tiny(nn.Module):
    """Seconds to compile: one convolution, a batch norm, a linear."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, CLASSES)

    def forward(self, x, return_features=False):
        f = self.norm(self.conv(x)).relu()
        pooled = f.mean((2, 3))
        return ([f, pooled], self.head(pooled)) if return_features else self.head(pooled)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="PyTorch's compiler needs a C++ compiler")
def test_a_compiled_network_trains_to_the_same_numbers(tmp_path):
    runs = []
    for name, compiled in (("eager", False), ("compiled", True)):
        run = make_run(tmp_path / name, "ce", epochs=2, batch_size=22, compile=compiled)
        torch.manual_seed(0)
        run.student = Tiny()
        fit(run)
        runs.append(run)
    close(*runs)
    assert list(runs[0].student.state_dict()) == list(runs[1].student.state_dict())


def test_both_networks_are_compiled_whole_and_the_losses_left_alone(tmp_path, eager, monkeypatch):
    """Traced and differentiated as for the real compiler, which would take minutes, but run by PyTorch's kernels."""
    counters.clear()
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: real(f, backend="aot_eager", **options))
    run = make_run(tmp_path, "wcord+kd", epochs=1, compile=True, log_grad_norms=True)
    fit(run)
    close(run, eager)
    # Student and teacher, for the whole batch and for the smaller last one; nothing breaks a graph.
    assert counters["stats"]["unique_graphs"] == 4 and not counters["graph_break"]
    torch.compiler.reset()


def test_uncompilable_network_is_reported(tmp_path, monkeypatch):
    from torch._dynamo.exc import BackendCompilerFailed

    def no_compiler(*_, **__):
        raise BackendCompilerFailed(lambda: None, RuntimeError("no C++ compiler"), None)

    run = make_run(tmp_path, "kd", compile=True)
    monkeypatch.setattr(torch, "compile", lambda *_, **__: no_compiler)
    with pytest.raises(NotImplementedError, match=r"compile: PyTorch cannot compile this network here: .*no C"):
        fit(run)


def test_channels_last_trains_to_the_same_numbers(tmp_path, eager):
    run = make_run(tmp_path, "wcord+kd", epochs=1, channels_last=True)
    images = next(iter(run.train.epoch(0)))[0]
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert run.student.layer2[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    fit(run)
    close(run, eager)
    momentum = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["optimizer"]["state"]
    assert len(momentum) == len(run.parameters())


class Recorder:
    """Stands in for a CUDA graph: recording leaves every tensor as it was, a replay fills the recorded tensors."""

    def __init__(self, run):
        self.run, self.replays = run, 0

    def tensors(self):
        modules = (self.run.student, self.run.method)
        return [t for m in modules for t in (*m.parameters(), *m.buffers())]

    def __call__(self, function):
        before = [t.detach().clone() for t in self.tensors()]
        parameters = self.run.parameters()
        assert all(p.grad is None for p in parameters)
        values = {name: value.clone() for name, value in function().items()}
        grads = [p.grad for p in parameters]
        with torch.no_grad():
            for tensor, value in zip(self.tensors(), before, strict=True):
                tensor.copy_(value)
            for static in (*values.values(), *(g for g in grads if g is not None)):
                static.fill_(torch.nan)  # an entry that a replay does not fill stays NaN

        def replay():
            self.replays += 1
            kept = [p.grad for p in parameters]
            for p in parameters:
                p.grad = None
            for name, value in function().items():
                values[name].copy_(value)
            for p, static, old in zip(parameters, grads, kept, strict=True):
                if static is not None:
                    static.copy_(p.grad)
                p.grad = old

        return values, replay


class NoWatch:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def seconds(self):
        return 0.002


@pytest.mark.parametrize("method", ["ce", "crd", "wcord+kd"])
def test_graphed_step_equals_the_eager_step(tmp_path, method):
    """All but the recording itself: static inputs, gradients and values, eager warm-up, smaller last batch, probe."""
    config = {"epochs": 2, "batch_size": 8, "log_grad_norms": True, "clip_grad": 1.0, "log_every": 2}
    plain = make_run(tmp_path / "plain", method, **config)
    fit(plain)
    run = make_run(tmp_path / "graphed", method, **config)
    recorder = Recorder(run)
    step = lambda batch, watch: gradients(run, batch, watch)[0]  # noqa: E731
    run.graphed = GraphedStep(step, run.parameters(), run.train, recorder, lambda f: f(), NoWatch)
    fit(run)
    assert_equal(everything(tmp_path / "graphed"), everything(tmp_path / "plain"))
    # 6 batches an epoch: one of them with a probe, the last of 4 images.
    assert recorder.replays == 2 * 4 - WARM_UP


def test_the_recorded_batch_is_refilled(tmp_path):
    run = make_run(tmp_path, "ce")
    seen = []

    def step(batch, watch):
        seen.append(batch)
        return {"first": batch.index[0].double()}

    def record(function):
        values = function()
        return values, lambda: values["first"].copy_(function()["first"])

    graphed = GraphedStep(step, [], run.train, record, lambda f: f(), NoWatch)
    watch = loop.Stopwatch(torch.device("cpu"))
    for epoch in range(3):
        for batch in run.train.epoch(epoch):
            assert graphed(batch, watch)["first"] == batch.index[0]
    assert len({id(b) for b in seen[-6:]}) < 6
    watch.sample()
    assert watch.seconds() == pytest.approx(0.002 * (6 - WARM_UP))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"device": "cpu"}, "cuda_graph: expected a CUDA device, got cpu"),
        ({"device": "auto"}, "cuda_graph: expected a CUDA device"),
    ],
)
def test_a_graph_without_cuda_is_refused(options, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        Config(cuda_graph=True, **options)


def test_a_graph_of_accumulated_gradients_is_refused(monkeypatch):
    monkeypatch.setattr("wcord_fast.cli.config.require_device", lambda name: torch.device("cuda"))
    Config(cuda_graph=True)
    with pytest.raises(ValueError, match="cuda_graph: a replay overwrites the gradients; expected accumulate=1, got 2"):
        Config(cuda_graph=True, accumulate=2)


def test_step_that_cannot_be_recorded_raises(monkeypatch):
    class Refused:
        def __init__(self, graph, capture_error_mode):
            pass

        def __enter__(self):
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", Refused)
    with pytest.raises(NotImplementedError, match=r"cuda_graph: this step cannot be captured: operation not permitted"):
        cuda_graph.record_on_cuda(dict)


def test_loss_share_is_its_fraction_of_the_time(tmp_path, monkeypatch):
    """A loss that sleeps 20 ms in each of three steps: its share of the epoch is at least those 60 ms, and below 1."""
    run = make_run(tmp_path, "kd", epochs=1, tensorboard=True)
    real = run.method.forward

    def slow(*args):
        time.sleep(0.02)
        return real(*args)

    monkeypatch.setattr(run.method, "forward", slow)
    (row,) = fit(run)
    assert 0.06 <= row["loss_share"] * row["seconds"] < row["seconds"]
    assert row["images_per_s"] * row["seconds"] == pytest.approx(TRAIN)
    with open(tmp_path / "metrics.csv", newline="") as file:
        (logged,) = csv.DictReader(file)
    assert float(logged["loss_share"]) == row["loss_share"]
    assert fit(make_run(tmp_path / "ce", "ce", epochs=1))[0]["loss_share"] == 0
