"""Parts of a bank: their partials add up to the whole, for every sampler, plan and backend."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from wcord_fast.ops import dispatch
from wcord_fast.ops.bank import native_cpu, native_cuda, op, reference, triton
from wcord_fast.ops.bank.part import Part
from wcord_fast.ops.sampling.spec import DrawSpec

from .bank_cases import BIAS, SAMPLERS, SCALE, TAU, problem, relative_error

LIMIT = 2e-5  # of fp32; at worst the reference on 12,000 draws with repetitions
CUTS = [(0, 300), (0, 1, 300), (0, 96, 97, 200, 300)]


def modules():
    modules = [pytest.param(reference, id="reference")]
    why = dispatch.cannot_run("native", "cpu")
    return [*modules, pytest.param(native_cpu, id="native", marks=pytest.mark.skipif(bool(why), reason=str(why)))]


def joined(module, plan, p, cuts):
    """The results of all parts, added up in fp64."""
    nce, mean, sums, sigmoid, infonce = [], [], [], [], []
    for lo, hi in pairwise(cuts):
        banks, part = [b[lo:hi].contiguous() for b in p.banks], Part(lo, p.banks[0].shape[0])
        common = (p.anchors, banks, p.index)
        nce.append(module.bank_nce(*common, p.log_z, p.spec, TAU, True, plan, "auto", part))
        mean.append(module.bank_mean_score(*common, p.spec, True, plan, "auto", part))
        sigmoid.append(module.bank_sigmoid(*common, SCALE, BIAS, p.spec, True, plan, "auto", part))
        infonce.append(module.bank_infonce(*common, p.spec, TAU, True, plan, "auto", part))
        sums.append(module.bank_log_sum_exp(*common, p.spec, TAU, plan, "auto", part).double())
    total = [[sum(t.double() for t in column) for column in zip(*parts, strict=True)] for parts in (nce, mean, sigmoid)]
    log_z = reference.normalised(torch.stack(sums).logsumexp(0), p.index, p.banks[0].shape[0], p.spec)
    log_sums = torch.stack([log_sum.double() for log_sum, _ in infonce])
    whole = log_sums.logsumexp(0)
    softmax_mean = sum(
        mean * reference.portion(log_sum, whole)[..., None]
        for log_sum, (_, mean) in zip(log_sums, infonce, strict=True)
    )
    critics = {"sigmoid": total[2], "infonce": (whole, softmax_mean)}
    return {"nce": total[0], "mean": total[1], "log_z": (log_z,), **critics}


def assert_close(actual, expected, cuts):
    for name in ("nce", "log_z", "sigmoid", "infonce"):
        for ours, theirs in zip(actual[name], expected[name], strict=True):
            assert relative_error(ours, theirs) < LIMIT, (name, cuts)
    for ours, theirs in zip(actual["mean"], expected["mean"], strict=True):  # near zero: in units of a score
        assert float((ours - theirs).abs().max()) < LIMIT, cuts


@pytest.mark.parametrize("module", modules())
@pytest.mark.parametrize("plan", ["gather", "dense"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_parts_add_up_to_the_whole(name, plan, module):
    p = problem(name)
    expected = p.answers()
    for cuts in CUTS:
        actual = joined(module, plan, p, cuts)
        assert_close(actual, expected, cuts)


@pytest.mark.parametrize("module", modules())
def test_many_anchors_and_rows_in_a_narrow_type(module):
    p = problem("class", dim=33, num_data=5000, batch=70, k=700, bank=torch.bfloat16)
    expected = p.answers()
    for plan in ("gather", "dense"):
        actual = joined(module, plan, p, (0, 1800, 5000))
        assert_close(actual, expected, plan)


@pytest.mark.parametrize("module", modules())
def test_part_without_drawn_rows_contributes_zero(module):
    p = problem("self", num_data=300, k=2)
    drawn = {int(r) for r in reference.draws.draw(p.index, 300, p.spec, "reference").flatten()} | set(p.index.tolist())
    lo = next(r for r in range(300) if not {r, r + 1, r + 2} & drawn)
    banks, part = [b[lo : lo + 3].contiguous() for b in p.banks], Part(lo, 300)
    loss, grad = module.bank_nce(p.anchors, banks, p.index, p.log_z, p.spec, TAU, True, "gather", "auto", part)
    assert not loss.any() and not grad.any()
    total = module.bank_log_sum_exp(p.anchors, banks, p.index, p.spec, TAU, "gather", "auto", part)
    assert (total == -torch.inf).all()
    log_sum, mean = module.bank_infonce(p.anchors, banks, p.index, p.spec, TAU, True, "gather", "auto", part)
    assert (log_sum == -torch.inf).all() and not mean.any()


def selected(monkeypatch, *, height, k, plan="auto", backend="auto", runs=("native", "triton")):
    """(module, plan) for a part of `height` of 100,000 rows on a CUDA device where the backends `runs` can run."""
    monkeypatch.setattr(dispatch, "cannot_run", lambda b, device: None if b in (*runs, "reference") else "not here")
    bank = SimpleNamespace(device=torch.device("cuda"), shape=(height, 128), dtype=torch.float32)
    anchors = SimpleNamespace(shape=(1, 64, 128), dtype=torch.float32)
    spec = DrawSpec("self", k, "no", False, 0, [])
    return op.select("bank_nce", anchors, [bank], spec, plan, backend, Part(1000, 100_000))[:2]


def test_parts_on_cuda_run_by_the_kernels(monkeypatch):
    assert selected(monkeypatch, height=1000, k=1000) == (native_cuda, "gather")
    assert selected(monkeypatch, height=1000, k=1000, backend="reference")[0] is reference
    assert selected(monkeypatch, height=1000, k=1000, runs=())[0] is reference
    assert selected(monkeypatch, height=1000, k=90_000) == (triton, "dense")
    assert selected(monkeypatch, height=1000, k=1000, backend="triton") == (triton, "dense")
    assert selected(monkeypatch, height=1000, k=90_000, runs=("native",)) == (native_cuda, "gather")
    with pytest.raises(NotImplementedError, match="plan='dense'"):
        selected(monkeypatch, height=1000, k=1000, backend="native", plan="dense")
