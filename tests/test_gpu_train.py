"""The driver's step on a GPU: compiled and graphed it trains as eagerly, and nothing in it synchronises."""

import pytest
import torch

from tests.train_tiny import make_run
from wcord_fast.data import TestBatches, TrainBatches
from wcord_fast.train import loop
from wcord_fast.train.loop import fit

pytestmark = pytest.mark.gpu


def on_gpu(directory, method, recipe=None, **config):
    run = make_run(directory, method, **config)
    run.spec["recipe"] |= recipe or {}
    data = run.train.dataset.to("cuda")
    run.train, run.test = TrainBatches(data, run.train.batch_size, seed=0), TestBatches(data, 5)
    run.student, run.method = run.student.cuda(), run.method.cuda()
    run.teacher = None if run.teacher is None else run.teacher.cuda()
    return run


@pytest.mark.parametrize("method", ["ce", "kd", "crd", "wcord+kd", "sp", "nst", "rkd", "pkt", "cc", "vid"])
@pytest.mark.parametrize("recipe", [{"cuda_graph": True}, {"cuda_graph": True, "compile": True, "precision": "bf16"}])
def test_the_graphed_step_trains_as_the_eager_one(tmp_path, method, recipe):
    plain = on_gpu(tmp_path / "plain", method, {"precision": recipe.get("precision", "fp32")}, epochs=4)
    fast = on_gpu(tmp_path / "fast", method, recipe, epochs=4)
    fit(plain), fit(fast)
    assert fast.graphed._graph is not None
    for one, other in zip(plain.history, fast.history, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=5e-2 if "compile" in recipe else 1e-3)
        assert 0 <= other["loss_share"] < 1 and (other["loss_share"] > 0) == (method != "ce")
    if method in ("crd", "wcord+kd"):
        sampler = [value for name, value in fast.method.state_dict().items() if name.endswith("sampler.state")]
        expected = [value for name, value in plain.method.state_dict().items() if name.endswith("sampler.state")]
        assert all(torch.equal(a, b) for a, b in zip(sampler, expected, strict=True))


def test_a_step_never_waits_for_the_device(tmp_path):
    run = on_gpu(tmp_path, "wcord+kd", epochs=1)
    optimizer = torch.optim.SGD(run.parameters(), lr=0.01)
    meters, watch = loop.Meters(0), loop.Stopwatch(torch.device("cuda"))
    batches = list(run.train.epoch(0))
    part = loop.micro_batch(0, 1, 1)
    loop.train_step(run, optimizer, batches[0], meters, watch, False, part)  # workspaces, choices of algorithms
    torch.cuda.set_sync_debug_mode("error")
    try:
        loop.train_step(run, optimizer, batches[1], meters, watch, False, part)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert watch.seconds() > 0
