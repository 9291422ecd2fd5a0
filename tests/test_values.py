"""Values at the edge of a dtype: right, or refused by the name of the argument."""

from __future__ import annotations

import math

import pytest
import torch

import wcord_fast
from wcord_fast import CRDLoss, KDLoss, NegativeSampler, OTLoss, WCoRDLoss
from wcord_fast import functional as F

N, D, B = 20, 5, 4


def problem(dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    return torch.randn(6, D, generator=g).to(dtype), torch.randn(3, D, generator=g).to(dtype)


def scored(dtype=torch.float32):
    g = torch.Generator().manual_seed(1)
    anchor, bank = torch.randn(B, D, generator=g), torch.randn(N, D, generator=g)
    return anchor.to(dtype), bank.to(dtype), torch.arange(B)


def test_a_float_log_z_is_not_rounded():
    args, options = scored(torch.float64), {"negatives": NegativeSampler(N, 5, seed=0)}
    exact = F.bank_nce(*args, log_z=torch.tensor(math.pi, dtype=torch.float64), **options)
    assert torch.equal(F.bank_nce(*args, log_z=math.pi, **options), exact)


def test_log_z_has_the_dtype_of_accumulation():
    anchor, bank, index = scored()
    options = {"negatives": NegativeSampler(N, 5, seed=0)}
    mixed = F.bank_log_z(anchor, bank.double(), index, **options)
    assert mixed.dtype == torch.float64
    torch.testing.assert_close(
        mixed, F.bank_log_z(anchor.double(), bank.double(), index, **options), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("plan", ["gather", "dense"])
def test_the_expectation_s_weights_are_exact_in_float64(plan):
    anchor, bank, index = scored(torch.float64)
    score = anchor @ bank.T
    expected = (score.sum(1) - score.gather(1, index[:, None])[:, 0]) / (N - 1)
    sampler = NegativeSampler(N, 7, expected=True, seed=0)
    mean = F.bank_mean_score(anchor, bank, index, negatives=sampler, plan=plan, backend="reference")
    torch.testing.assert_close(mean, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("n", [3, 3000])
def test_uniform_half_masses_are_accepted(dtype, backend, n):
    y = torch.randn(n, D, generator=torch.Generator().manual_seed(0)).to(dtype)
    x = problem(dtype)[0]
    uniform = torch.full((n,), 1 / n).to(dtype)
    torch.testing.assert_close(
        F.ot_cost(x, y, b=uniform, iters=5, backend=backend), F.ot_cost(x, y, iters=5, backend=backend)
    )
    with pytest.raises(ValueError, match="b: expected masses with sum 1"):
        F.ot_cost(x, y, b=uniform * 1.1, backend=backend)


def test_single_masses_are_not_renormalised():
    x, y = problem()
    with pytest.raises(ValueError, match="b: expected masses with sum 1"):
        F.ot_cost(x, y, b=torch.full((3,), 1 / 3) * 0.9995)


def test_a_class_masked_in_both_networks_adds_nothing():
    s, t = torch.randn(4, 6, requires_grad=True), torch.randn(4, 6)
    mask = torch.tensor([False, True, False, False, False, True])
    kept = KDLoss()(s[:, ~mask], t[:, ~mask])
    masked = KDLoss()(s.masked_fill(mask, -math.inf), t.masked_fill(mask, -math.inf))
    torch.testing.assert_close(masked, kept)
    ours, expected = (torch.autograd.grad(loss, s)[0] for loss in (masked, kept))
    torch.testing.assert_close(ours, expected)
    assert KDLoss()(s.masked_fill(mask, -math.inf), t).isinf()  # a class that the teacher believes in


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_undefined_logits_are_refused(value):
    for side, name in enumerate(("student_logits", "teacher_logits")):
        logits = [torch.zeros(4, 6), torch.zeros(4, 6)]
        logits[side][2, 1] = value
        with pytest.raises(ValueError, match=f"{name}: row 2"):
            KDLoss()(*logits)
        logits[side][2] = -math.inf
        with pytest.raises(ValueError, match=f"{name}: row 2"):
            KDLoss()(*logits)


@pytest.mark.parametrize("temperature", [1e300, 1e-46, 1e20])
def test_kd_temperatures_out_of_range(temperature):
    with pytest.raises(ValueError, match="temperature: expected a number whose square is finite"):
        KDLoss(temperature)


def test_inverses_that_overflow_are_named():
    x, y = problem()
    args, options = scored(), {"negatives": NegativeSampler(N, 5, seed=0)}
    for solver in ("ipot", "sinkhorn"):
        with pytest.raises(ValueError, match="eps: expected a number whose inverse is finite"):
            F.ot_cost(x, y, eps=1e-40, solver=solver)
    with pytest.raises(ValueError, match="eps: "):
        F.ot_cost(x, y, eps=1e-37, iters=50)  # 50 / eps is not
    for call in (F.bank_nce, F.bank_log_z):
        extra = {"log_z": 1.0} if call is F.bank_nce else {}
        with pytest.raises(ValueError, match="temperature: expected a number whose inverse is finite"):
            call(*args, temperature=1e-46, **options, **extra)
    with pytest.raises(ValueError, match="temperature"):
        WCoRDLoss(4, 5, N, temperature=1e-46)
    with pytest.raises(ValueError, match="ot_eps"):
        WCoRDLoss(4, 5, N, ot_eps=1e-40)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_features_that_overflow_the_cost_are_named(backend):
    x, y = problem()
    with pytest.raises(ValueError, match=r"x: values up to .*e\+20 overflow torch.float32 in the cost 'sqeuclidean'"):
        F.ot_cost(x * 1e20, y, cost="sqeuclidean", backend=backend)
    with pytest.raises(ValueError, match=r"y: values up to .*e\+25"):
        F.ot_cost(x, y * 1e25, cost="sqeuclidean", backend=backend)
    torch.testing.assert_close(F.ot_cost(x * 1e20, y * 1e25, backend=backend), F.ot_cost(x, y, backend=backend))
    assert F.ot_cost(x.double() * 1e20, y.double(), cost="sqeuclidean", backend=backend).isfinite()


def test_numbers_and_names_out_of_range_are_named():
    x, y = problem()
    args, sampler = scored(), NegativeSampler(N, 5, seed=0)
    with pytest.raises(ValueError, match="iters: expected an int below"):
        F.ot_cost(x, y, iters=2**70)
    with pytest.raises(ValueError, match="iters"):
        OTLoss(iters=2**31)
    for negatives in (sampler, torch.zeros(B, 2, dtype=torch.int64)):
        with pytest.raises(ValueError, match="anchor_offset: expected an int below"):
            F.bank_mean_score(*args, negatives=negatives, anchor_offset=2**32)
    with pytest.raises(ValueError, match="seed"):
        NegativeSampler(N, 5, seed=2**64)
    for call in (
        lambda: F.ot_cost(x, y, backend=None),
        lambda: F.bank_mean_score(*args, negatives=sampler, backend=None),
        lambda: sampler.draw(args[2], backend=None),
    ):
        with pytest.raises(ValueError, match="backend: expected one of"):
            call()
    with pytest.raises(ValueError, match="device"):
        wcord_fast.explain("draw", device="foo")


def test_nested_tensors_are_refused():
    x, y = problem()
    nested = torch.nested.nested_tensor([x[0], x[1]])
    loss = CRDLoss(x.shape[1], x.shape[1], N, nce_k=5)
    for name, call in (
        ("x", lambda: F.ot_cost(nested, y)),
        ("student_logits", lambda: KDLoss()(nested, y)),
        ("f_s", lambda: loss(nested, y, torch.arange(2))),
    ):
        with pytest.raises(TypeError, match=f"{name}: expected a dense tensor, got a nested one"):
            call()


def test_checking_a_device_that_is_not_there():
    with pytest.raises(ValueError, match="device: expected one of this machine, got 'foo'"):
        wcord_fast.check("foo")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device: expected one of this machine, got 'cuda'"):
            wcord_fast.check("cuda")
