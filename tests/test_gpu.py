"""Checks that need a GPU: native CUDA against the CPU, modules on the device, the status word, no host sync."""

from __future__ import annotations

import pytest
import torch

import wcord_fast
from wcord_fast import CRDLoss, NegativeSampler, WCoRDLoss, use_backend
from wcord_fast import functional as F

pytestmark = pytest.mark.gpu

N, B = 5000, 70
LABELS = torch.arange(N) % 10
SAMPLERS = {
    "none": {"k": 700, "exclude": "none"},
    "self": {"k": 700, "exclude": "self"},
    "class": {"k": 700, "labels": LABELS},
    "replacement": {"k": 700, "exclude": "self", "replacement": True},
    "weights": {"k": 700, "weights": torch.arange(N)},
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_are_bit_identical_on_every_backend(name):
    s = NegativeSampler(N, seed=3, **SAMPLERS[name])
    index = torch.randint(0, N, (B,), generator=torch.Generator().manual_seed(0))
    expected = s.draw(index, backend="reference")
    assert torch.equal(s.draw(index, backend="native"), expected)
    s = s.cuda()
    for backend in ("native", "reference"):
        assert torch.equal(s.draw(index.cuda(), backend=backend).cpu(), expected), backend


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("dim", [1, 33, 128])
def test_native_update_equals_the_reference(dtype, dim):
    g = torch.Generator().manual_seed(0)
    bank, rows = torch.randn(N, dim, generator=g).to(dtype), torch.randn(B, dim, generator=g)
    index = torch.randint(0, 40, (B,), generator=g)  # many duplicates
    expected = bank.double()
    with use_backend("reference"):
        F.bank_update_(expected, index, rows.double())
    mine = bank.cuda()
    with use_backend("native"):
        F.bank_update_(mine, index.cuda(), rows.cuda())
    torch.testing.assert_close(
        mine.cpu().double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps
    )


def test_bad_rows_are_skipped_and_flagged():
    bank = torch.randn(10, 8, device="cuda")
    before = bank.clone()
    rows = torch.randn(3, 8, device="cuda")
    rows[2, 5] = torch.nan
    F.bank_update_(bank, torch.tensor([1, 10, 3], device="cuda"), rows)
    with pytest.raises(ValueError, match=r"out of \[0, N\).*NaN or inf"):
        wcord_fast.check()
    wcord_fast.check()
    assert torch.equal(bank[[0, *range(2, 10)]], before[[0, *range(2, 10)]]) and not torch.equal(bank[1], before[1])


def test_a_bad_anchor_gets_a_nan_loss_and_leaves_the_others_alone():
    s = NegativeSampler(N, 100, labels=LABELS, seed=1).cuda()
    bank, x = torch.randn(N, 16, device="cuda"), torch.randn(4, 16, device="cuda")
    x[1, 2] = torch.inf
    loss = F.bank_nce(x, bank, torch.tensor([0, 1, N, 3], device="cuda"), negatives=s, log_z=9.0)
    assert torch.isnan(loss).tolist() == [False, True, True, False]
    with pytest.raises(ValueError, match="anchor"):
        wcord_fast.check()


@pytest.mark.parametrize("make", [
    lambda: CRDLoss(64, 128, N, nce_k=700, labels=LABELS, seed=5),
    lambda: WCoRDLoss(64, 128, N, num_negatives=700, labels=LABELS, seed=5),
    lambda: WCoRDLoss(64, 128, N, critic="dual", labels=LABELS, seed=5),
])  # fmt: skip
def test_modules_give_the_numbers_of_the_cpu(make):
    torch.manual_seed(0)
    cpu = make()
    torch.manual_seed(0)
    gpu = make().cuda()
    for step in range(4):
        g = torch.Generator().manual_seed(step)
        f_s, f_t = torch.randn(B, 64, generator=g), torch.randn(B, 128, generator=g)
        idx = torch.randint(0, N, (B,), generator=g)
        a, b = f_s.clone().requires_grad_(), f_s.cuda().requires_grad_()
        x, y = cpu(a, f_t, idx), gpu(b, f_t.cuda(), idx.cuda())
        x.backward()
        y.backward()
        torch.testing.assert_close(x, y.cpu(), rtol=1e-5, atol=0)
        torch.testing.assert_close(a.grad, b.grad.cpu(), rtol=1e-3, atol=1e-6)
    wcord_fast.check()


def test_auto_uses_the_native_draws_and_update():
    assert wcord_fast.explain("draw", device="cuda").backend == "native"
    assert wcord_fast.explain("bank_update", device="cuda").backend == "native"


def test_ot_on_the_device_equals_the_cpu():
    x, y = torch.randn(3, 40, 16), torch.randn(3, 30, 16)
    torch.testing.assert_close(F.ot_cost(x.cuda(), y.cuda()).cpu(), F.ot_cost(x, y), rtol=1e-4, atol=1e-6)
