"""AB, FSP and FT: their formulas, the stage that each trains first, and its resumption."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from tests.test_distill_baselines import STUDENT, TEACHER, B, features, method, pair, pooled
from tests.test_train_loop import assert_equal, everything
from tests.train_tiny import make_run
from wcord_fast.distill.stage import feature_modules
from wcord_fast.train import checkpoint, stage
from wcord_fast.train.loop import fit

SAME_CHANNELS = ((4, 8, 8), (4, 8, 8), (6, 2, 2), (8, 1, 1), (5,))


def ab(m, s, t):
    total = 0
    for i, (connect, a, b) in enumerate(zip(m.connectors, s[1:-1], t[1:-1], strict=True)):
        a = connect(a)
        loss = (a + 1) ** 2 * ((a > -1) & (b <= 0)) + (a - 1) ** 2 * ((a <= 1) & (b > 0))
        total = total + 2.0 ** (i - 3 + 1) * loss.abs().sum()
    return total / B / 1000 * 3


def fsp(m, s, t):
    def matrices(g):
        maps = []
        for low, high in pairwise(g[:-1]):
            low, high = pooled(low, high)
            low, high = low.unsqueeze(1).flatten(3), high.unsqueeze(2).flatten(3)
            maps.append((low * high).mean(-1))
        return maps

    return 50 * sum((a - b).pow(2).mean() for a, b in zip(matrices(s), matrices(t), strict=True))


@pytest.mark.parametrize(("name", "formula"), [("ab", ab), ("fsp", fsp)])
def test_stage_losses_equal_the_published_formulas(name, formula):
    m = method(name, pair(teacher=SAME_CHANNELS) if name == "fsp" else pair())
    s, t = features(STUDENT, 2), features(SAME_CHANNELS if name == "fsp" else TEACHER, 3)
    ours, theirs = m.stage.loss(s, t), formula(m, s, t)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    inputs = [*s[:-1], *m.parameters()]
    for a, b in zip(*(torch.autograd.grad(v, inputs, allow_unused=True) for v in (ours, theirs)), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_connectors_are_trained_where_shapes_differ():
    m = method("ab", pair())
    assert m.stage.modules == (m.connectors,) and m.stage.trains_student and m.stage.preact
    assert len(list(m.connectors.parameters())) == 3 * 4  # weight and bias of a convolution and of its batch norm


def leaky(x):
    return F.leaky_relu(x, 0.1)


def test_ft_equals_the_published_formula():
    m = method("ft", pair(teacher=((6, 8, 8), (6, 8, 8), (9, 4, 4), (12, 4, 4), (12,))))
    s, t = features(STUDENT, 2), features(((12, 4, 4), (12,)), 3)
    encode, decode, translate = m.paraphraser.encoder, m.paraphraser.decoder, m.translator
    factor = t[0]
    for i in (0, 2, 4):
        factor = leaky(F.conv2d(factor, encode[i].weight, encode[i].bias, padding=1))
    back = factor
    for i in (0, 2, 4):
        back = leaky(F.conv_transpose2d(back, decode[i].weight, decode[i].bias, padding=1))
    torch.testing.assert_close(m.stage.loss([], t), (back - t[0]).pow(2).mean(), rtol=1e-10, atol=0)
    mine = s[-2]
    for i in (0, 3, 6):
        x = F.conv2d(mine, translate[i].weight, translate[i].bias, padding=1)
        x = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
        mine = leaky(x)
    maps = [f.pow(2).mean(1).reshape(B, -1) for f in pooled(mine, factor)]
    a, b = (f / f.norm(dim=1, keepdim=True) for f in maps)
    ours = m.distance(*m.compared(s, t))
    torch.testing.assert_close(ours, (a - b).abs().mean(), rtol=1e-10, atol=0)
    ours.backward()
    assert all(p.grad is None for p in m.paraphraser.parameters())  # frozen after its stage
    assert all(p.grad is not None for p in m.translator.parameters())


def test_fsp_refuses_unequal_channels_with_the_reason():
    with pytest.raises(ValueError, match=r"fsp: .*same channels .*student has \[4, 4, 6, 8\].*\[6, 6, 9, 12\]"):
        method("fsp", pair())


def run(directory, name, **config):
    config.setdefault("epochs", 2)
    return make_run(directory, name, **{"ab": {"stage_epochs": 3}, "ft": {"stage_epochs": 3}} | config)


def weights(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


@pytest.mark.parametrize("name", ["ab", "ft"])
def test_stage_trains_only_its_own_parameters(tmp_path, name):
    r = run(tmp_path, name)
    student, own = weights(r.student), weights(r.method)
    history = stage.pretrain(r, r.teacher)
    assert history[-1]["loss"] < history[0]["loss"] and len(history) == 3
    head = {k for k in student if k.startswith("fc.")}
    changed = {k for k in student if not torch.equal(student[k], r.student.state_dict()[k])}
    assert changed == (set(student) - head if name == "ab" else set())
    moved = {k.split(".")[0] for k in own if not torch.equal(own[k], r.method.state_dict()[k])}
    assert moved == (set() if name == "ab" else {"paraphraser"})  # equal shapes: ab's connectors are the identity here
    assert set(feature_modules(r.student)) == set(r.student.children()) - {r.student.fc}


@pytest.mark.parametrize("name", ["ab+kd", "ft"])
def test_run_killed_in_its_stage_resumes_to_equal_results(tmp_path, monkeypatch, name):
    fit(run(tmp_path / "whole", name))
    real, calls = stage._epoch, []

    def dies_in_the_third(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(stage, "_epoch", dies_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        fit(run(tmp_path / "broken", name))
    monkeypatch.undo()
    torch.rand(9)
    torch.manual_seed(0)
    fit(run(tmp_path / "broken", name))
    assert_equal(everything(tmp_path / "whole"), everything(tmp_path / "broken"))


def test_a_finished_stage_is_not_run_again(tmp_path, monkeypatch):
    fit(run(tmp_path, "ab"))
    (tmp_path / "checkpoint.pt").unlink()
    monkeypatch.setattr(stage, "_epoch", None)
    fit(run(tmp_path, "ab"))


def test_directory_with_a_different_stage_is_refused(tmp_path):
    fit(run(tmp_path, "ab"))
    (tmp_path / "checkpoint.pt").unlink()
    with pytest.raises(checkpoint.CheckpointError, match=r"stage.epochs was 3, now 4"):
        fit(run(tmp_path, "ab", ab={"stage_epochs": 4}))


def test_by_default_a_stage_lasts_an_eighth_of_the_epochs(tmp_path):
    r = make_run(tmp_path, "ft", epochs=16)
    assert len(stage.pretrain(r, r.teacher)) == 2
