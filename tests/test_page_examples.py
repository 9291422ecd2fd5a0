"""The examples of the pages run unchanged."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch

from wcord_fast import data, distill, models
from wcord_fast.data import registry as data_registry
from wcord_fast.distill import registry
from wcord_fast.nn import own_critic
from wcord_fast.train import fit
from wcord_fast.train.evaluation import evaluate

from .train_tiny import make_run

DOCS = Path(__file__).resolve().parents[1] / "docs"


def example(page, name):
    return re.search(rf"<!-- example: {name} -->\n```python\n(.*?)```", (DOCS / page).read_text(), re.S)[1]


def readme(part):
    text = (DOCS.parent / "README.md").read_text()
    return re.search(rf"<!-- --8<-- \[start:{part}\] -->\n```python\n(.*?)```", text, re.S)[1]


def test_the_loop_of_the_readme_trains():
    labels = torch.arange(8)
    names = {"train_labels": labels, "loader": [(torch.rand(2, 3, 32, 32), labels[:2], torch.arange(2))]}
    with pytest.warns(UserWarning, match="exceeds a pool of 7 rows"):
        exec(readme("loop"), names)
    assert set(names["wcord"].terms) == {"gckt", "lckt"} and names["loss"].isfinite()
    assert all(parameter.grad is not None for parameter in names["wcord"].parameters())


def test_the_call_of_fit_in_the_readme_needs_networks_and_data_only(capsys):
    rows = torch.utils.data.TensorDataset(torch.randn(24, 3, 8, 8), torch.arange(24) % 3)
    nets = [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, w), torch.nn.Linear(w, 3)) for w in (4, 8)]
    names = {"student": nets[0], "teacher": nets[1], "train_set": rows, "test_loader": [rows[:4]]}
    exec(readme("fit").replace("epochs=30", "epochs=1, quiet=True"), names)
    assert "gckt" in capsys.readouterr().out


def test_a_users_networks_are_distilled_by_hooks(tmp_path, monkeypatch):
    torch.manual_seed(0)
    names = {}
    exec(example("howto/networks.md", "hooks"), names)
    student, method, digits = names["student"], names["method"], names["digits"]
    accuracy = evaluate(student, data.TestBatches(digits))["test_top1"]
    assert accuracy > 20  # by chance 10; how much more depends on the release of PyTorch
    assert names["out_s"].feats[-1].shape[1] == 16 and names["out_t"].feats[-1].shape[1] == 64
    assert set(method.wcord.terms) == {"gckt", "lckt"}
    steps = 5 * len(names["batches"])
    assert int(method.wcord.contrast.sampler.step) == steps
    torch.save({"model": names["yours"](64).state_dict(), "epoch": 3}, tmp_path / "teacher.pt")
    monkeypatch.chdir(tmp_path)
    exec(example("howto/networks.md", "weights"), names)
    saved = torch.load("teacher.pt", weights_only=True)["model"]
    assert all(torch.equal(value, saved[key]) for key, value in names["teacher"].state_dict().items())


def test_the_methods_with_a_stage_of_their_own_are_the_three_that_pre_train():
    net, images, labels = models.create("resnet8", num_classes=10), torch.rand(2, 3, 32, 32), torch.arange(8) % 2
    staged = set()
    for name in set(distill.names()) - {"crd", "wcord", "gckt", "lckt"}:
        method = distill.create(name, student=net, teacher=net, example=images, num_data=8, labels=labels)
        if method.stage is not None:
            staged.add(name)
    assert staged == {"ab", "fsp", "ft"}


def test_a_method_of_ones_own_is_made_by_name(monkeypatch):
    monkeypatch.setattr(registry, "METHODS", dict(distill.METHODS))
    exec(example("howto/own.md", "method"), {"__name__": "mine"})
    net, images, labels = models.create("resnet8", num_classes=10), torch.rand(2, 3, 32, 32), torch.arange(8) % 2
    facts = {"student": net, "teacher": net, "example": images, "num_data": 8, "labels": labels}
    method = distill.create("cosine+kd", **facts, weight=2.0)
    features, logits = net(images, return_features=True)
    outputs = distill.Outputs(features, logits)
    loss = method(outputs, outputs, data.Batch(images, labels[:2], torch.arange(2)))
    assert set(loss.terms) == {"distance", "kd"}
    assert loss.value.item() == pytest.approx(2 * loss.terms["distance"].item(), abs=1e-6)


def test_a_critic_of_ones_own():
    names = {"__name__": "mine"}
    known = dict(own_critic.OWN)
    try:
        exec(example("howto/own.md", "critic"), names)
    finally:
        own_critic.OWN.clear()
        own_critic.OWN.update(known)
    assert names["loss"].isfinite() and names["wcord"].critic == "hinge"


def test_data_of_ones_own_are_loaded_by_name(monkeypatch):
    monkeypatch.setattr(data_registry, "SOURCES", dict(data_registry.SOURCES))
    exec(example("howto/own.md", "data"), {"__name__": "mine"})
    batch = next(data.TrainBatches(data.load("noise"), 8, seed=0).epoch(0))
    assert batch.images.shape == (8, 3, 16, 16) and batch.index.max() < 45


def test_custom_queue_is_scored_as_a_bank():
    names = {}
    exec(example("howto/queue.md", "queue"), names)
    queue, student, teacher = (names[name] for name in ("queue", "student", "teacher"))
    assert int(queue.filled) == queue.size and torch.equal(queue.rows[224:256], teacher)  # the 40th batch, round again
    assert torch.isfinite(names["loss"]) and student.grad is not None


def test_a_stream_needs_no_numbers():
    names = {}
    exec(example("howto/queue.md", "stream"), names)
    assert names["features_s"].grad.abs().sum() > 0
    assert int(names["wcord"].paired.queue_t.filled) == 8 * 32


def test_figures_equal_what_their_script_draws(tmp_path):
    spec = importlib.util.spec_from_file_location("draw", DOCS / "figures" / "draw.py")
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    draw.main(tmp_path)
    committed = {path.name: path.read_text() for path in (DOCS / "figures").glob("*.svg")}
    assert committed == {path.name: path.read_text() for path in tmp_path.glob("*.svg")}


def test_a_logger_of_ones_own(tmp_path, monkeypatch):
    names = {"__name__": "mine"}
    exec(example("howto/own.md", "logger"), names)
    monkeypatch.setitem(globals(), "Best", names["Best"])
    fit(make_run(tmp_path, loggers=[f"{__name__}:Best"]))
    assert re.fullmatch(r"epoch [12]: [\d.]+ %\n", (tmp_path / "best.txt").read_text())
