"""The bank functions against float64 formulas written out for explicit rows, for every sampler and plan."""

from __future__ import annotations

import math

import pytest
import torch

from tests.crd_oracle import estimate_z, nce_per_anchor, updated_bank
from wcord_fast import MemoryBank, NegativeSampler
from wcord_fast import functional as F

N, D, B, TAU = 60, 12, 7, 0.07
LABELS = torch.arange(N) % 5
PLANS = ("gather", "dense")

SAMPLERS = {
    "none": {"k": 20, "exclude": "none"},
    "self": {"k": 20, "exclude": "self"},
    "class": {"k": 20, "labels": LABELS},
    "class_full": {"k": 48, "labels": LABELS},
    "self_replacement": {"k": 20, "exclude": "self", "replacement": True},
    "class_replacement": {"k": 200, "labels": LABELS, "replacement": True},
    "weights": {"k": 33, "weights": torch.arange(N, dtype=torch.float64)},
    "k1": {"k": 1, "exclude": "self"},
}


def problem(dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    bank = torch.nn.functional.normalize(torch.randn(N, D, generator=g, dtype=torch.float64), dim=1)
    anchor = torch.nn.functional.normalize(torch.randn(B, D, generator=g, dtype=torch.float64), dim=1)
    index = torch.randint(0, N, (B,), generator=g)
    return anchor.to(dtype), bank.to(dtype), index


def sampler(name, seed=11):
    return NegativeSampler(N, seed=seed, **SAMPLERS[name])


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_loss_and_gradient_equal_the_published_formula(name, plan):
    anchor, bank, index = problem()
    negatives, log_z = sampler(name), torch.tensor(4.2, dtype=torch.float64)
    rows = torch.cat((index[:, None], negatives.draw(index)), 1)
    ours, theirs = anchor.clone().requires_grad_(), anchor.clone().requires_grad_()
    loss = F.bank_nce(ours, bank, index, negatives=negatives, log_z=log_z, temperature=TAU, plan=plan)
    expected = nce_per_anchor(theirs, bank, rows, log_z.exp(), TAU, N)
    weight = torch.arange(1.0, B + 1, dtype=torch.float64)
    (loss * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=0)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("plan", PLANS)
def test_explicit_rows_equal_the_sampler_that_drew_them(plan):
    anchor, bank, index = problem()
    negatives = sampler("class")
    rows = negatives.draw(index)
    args = {"log_z": 3.0, "plan": plan}
    drawn = F.bank_nce(anchor, bank, index, negatives=negatives, **args)
    given = F.bank_nce(anchor, bank, index, negatives=rows.int(), **args)
    torch.testing.assert_close(given, drawn, rtol=1e-13, atol=0)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("options", [{"exclude": "none"}, {"exclude": "self"}, {"labels": LABELS}])
def test_negatives_all_scores_every_pool_row_once(options, plan):
    anchor, bank, index = problem()
    negatives = NegativeSampler(N, "all", **options)
    rows = torch.cat((index[:, None], negatives.draw(index)), 1)
    loss = F.bank_nce(anchor, bank, index, negatives=negatives, log_z=4.0, plan=plan)
    z = torch.tensor(4.0).exp().double()
    torch.testing.assert_close(loss, nce_per_anchor(anchor, bank, rows, z, 0.07, N), rtol=1e-6, atol=0)
    mean = F.bank_mean_score(anchor, bank, index, negatives=negatives, plan=plan)
    torch.testing.assert_close(mean, torch.einsum("bd,bkd->bk", anchor, bank[rows[:, 1:]]).mean(1))


def test_negatives_all_with_unequal_classes_uses_each_pool_size():
    anchor, bank, index = problem()
    labels = torch.cat((torch.zeros(30), torch.arange(30) % 4 + 1)).long()
    negatives = NegativeSampler(N, "all", labels=labels)
    loss = F.bank_nce(anchor, bank, index, negatives=negatives, log_z=4.0)
    for b in range(B):
        rows = torch.cat((index[b : b + 1], (labels != labels[index[b]]).nonzero()[:, 0]))[None]
        one = nce_per_anchor(anchor[b : b + 1], bank, rows, math.exp(4.0), 0.07, N)
        torch.testing.assert_close(loss[b : b + 1], one, rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="whole pool must have one size"):
        negatives.draw(index)


@pytest.mark.parametrize("plan", PLANS)
def test_expected_loss_equals_the_mean_over_draws(plan):
    anchor, bank, index = problem()
    expected = F.bank_nce(
        anchor,
        bank,
        index,
        negatives=NegativeSampler(N, 20, labels=LABELS, expected=True),
        log_z=4.0,
        plan=plan,
    )
    drawn = NegativeSampler(N, 20, labels=LABELS, seed=3)
    losses = []
    for _ in range(600):
        losses.append(F.bank_nce(anchor, bank, index, negatives=drawn, log_z=4.0, plan=plan))
        drawn.advance()
    losses = torch.stack(losses)
    error = (losses.mean(0) - expected).abs() / (losses.std(0) / math.sqrt(600))
    assert error.max() < 4.5, error


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", ["class", "weights", "self_replacement"])
def test_mean_score_and_log_z(name, plan):
    anchor, bank, index = problem()
    negatives = sampler(name)
    rows = negatives.draw(index)
    ours = anchor.clone().requires_grad_()
    mean = F.bank_mean_score(ours, bank, index, negatives=negatives, plan=plan)
    mean.sum().backward()
    torch.testing.assert_close(mean, torch.einsum("bd,bkd->bk", anchor, bank[rows]).mean(1))
    torch.testing.assert_close(ours.grad, bank[rows].mean(1))
    log_z = F.bank_log_z(anchor, bank, index, negatives=negatives, temperature=TAU, plan=plan)
    both = torch.cat((index[:, None], rows), 1)
    torch.testing.assert_close(log_z.exp(), estimate_z(anchor, bank, both, TAU, N))
    assert log_z.shape == () and not log_z.requires_grad


def test_gradcheck():
    anchor, bank, index = problem()
    negatives = sampler("class")
    x = anchor.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: F.bank_nce(x, bank, index, negatives=negatives, log_z=4.0), (x,))
    assert torch.autograd.gradcheck(lambda x: F.bank_mean_score(x, bank, index, negatives=negatives), (x,))


def test_temperature_below_the_published_form_s_overflow():
    anchor, bank, index = problem(torch.float32)
    loss = F.bank_nce(anchor, bank, index, negatives=sampler("class"), log_z=150.0, temperature=0.004)
    assert torch.isfinite(loss).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("plan", PLANS)
def test_low_precision_anchors_accumulate_in_fp32(dtype, plan):
    anchor, bank, index = problem()
    low = anchor.to(dtype).requires_grad_()
    half_bank = bank.to(torch.bfloat16)
    negatives = sampler("class")
    loss = F.bank_nce(low, half_bank, index, negatives=negatives, log_z=4.0, plan=plan)
    exact = low.detach().double().requires_grad_()
    reference = F.bank_nce(exact, half_bank.double(), index, negatives=negatives, log_z=4.0, plan=plan)
    loss.sum().backward()
    reference.sum().backward()
    assert loss.dtype == torch.float32 and low.grad.dtype == dtype
    torch.testing.assert_close(loss.double(), reference, rtol=2e-6, atol=0)
    torch.testing.assert_close(low.grad.double(), exact.grad, rtol=4 * torch.finfo(dtype).eps, atol=1e-5)


def test_expanded_and_sliced_grad_output_and_second_backward():
    anchor, bank, index = problem()
    x = anchor.clone().requires_grad_()
    loss = F.bank_nce(x, bank, index, negatives=sampler("class"), log_z=4.0)
    (expanded,) = torch.autograd.grad(loss, x, torch.ones((), dtype=x.dtype).expand(B), retain_graph=True)
    sliced = torch.stack((torch.ones(B, dtype=x.dtype), torch.zeros(B, dtype=x.dtype)), 1)[:, 0]
    (again,) = torch.autograd.grad(loss, x, sliced)
    assert torch.equal(expanded, again)


def test_gradient_belongs_to_the_forward_even_if_bank_and_step_move_on():
    anchor, bank, index = problem()
    negatives = sampler("class")
    x = anchor.clone().requires_grad_()
    (before,) = torch.autograd.grad(F.bank_nce(x, bank, index, negatives=negatives, log_z=4.0).sum(), x)
    loss = F.bank_nce(x, bank, index, negatives=negatives, log_z=4.0).sum()
    F.bank_update_(bank, index, anchor)
    negatives.advance()
    (after,) = torch.autograd.grad(loss, x)
    assert torch.equal(before, after)


def test_strided_inputs_give_equal_results_and_are_not_modified():
    anchor, bank, index = problem()
    wide = torch.stack((anchor, anchor), 2)[:, :, 0]
    bank_t = bank.T.contiguous().T
    copies = wide.clone(), bank_t.clone(), index.clone()
    strided_index = torch.stack((index, index), 1).int()[:, 0]
    args = {"negatives": sampler("class"), "log_z": 4.0}
    assert not wide.is_contiguous() and not bank_t.is_contiguous() and not strided_index.is_contiguous()
    loss = F.bank_nce(wide, bank_t, strided_index, **args)
    torch.testing.assert_close(loss, F.bank_nce(anchor, bank, index, **args), rtol=1e-13, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(copies, (wide, bank_t, index), strict=True))


def test_anchor_offset_shifts_the_draws():
    _, _, index = problem()
    s = sampler("class")
    whole = s.draw(index)
    assert torch.equal(whole[3:], s.draw(index[3:], anchor_offset=3))
    anchor, bank, _ = problem()
    part = F.bank_nce(anchor[3:], bank, index[3:], negatives=s, log_z=4.0, anchor_offset=3)
    torch.testing.assert_close(part, F.bank_nce(anchor, bank, index, negatives=s, log_z=4.0)[3:], rtol=1e-12, atol=0)


@pytest.mark.parametrize("chunk", [1, 3000])
@pytest.mark.parametrize("plan", PLANS)
def test_chunks_do_not_change_the_result(monkeypatch, chunk, plan):
    from wcord_fast.ops.bank import reference

    anchor, bank, index = problem()
    args = {"negatives": sampler("class"), "log_z": 4.0, "plan": plan}
    whole = F.bank_nce(anchor, bank, index, **args)
    monkeypatch.setattr(reference, "CHUNK_BYTES", chunk)
    torch.testing.assert_close(F.bank_nce(anchor, bank, index, **args), whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_update_takes_the_last_duplicate(dtype, backend):
    from wcord_fast import use_backend

    anchor, bank, _ = problem()
    index = torch.tensor([5, 9, 5, 0, 59, 9, 5])
    mine = bank.to(dtype)
    expected = updated_bank(mine.double(), index, anchor.double(), 0.5)
    with use_backend(backend):
        assert F.bank_update_(mine, index, anchor, 0.5) is mine
    torch.testing.assert_close(
        mine.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=2 * torch.finfo(dtype).eps
    )
    untouched = [i for i in range(N) if i not in index]
    assert torch.equal(mine[untouched], bank.to(dtype)[untouched])


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_update_of_huge_and_tiny_rows(backend):
    from wcord_fast import use_backend

    rows = torch.tensor([[3e30, 4e30], [3e-30, 4e-30]])
    bank = torch.zeros(2, 2)
    with use_backend(backend):
        F.bank_update_(bank, torch.tensor([0, 1]), rows, 0.0)
    torch.testing.assert_close(bank[0], torch.tensor([0.6, 0.8]))
    torch.testing.assert_close(bank[1], rows[1] / 1e-12, rtol=1e-6, atol=0)  # the clamped norm


def test_update_uses_the_banks_momentum_and_defaults_to_a_half():
    anchor, plain, index = problem()
    bank = MemoryBank(N, D, momentum=0.9, dtype=torch.float64, seed=0)
    for mine, rows, momentum in ((bank, bank.rows, 0.9), (plain, plain, 0.5)):
        expected = updated_bank(rows, index, anchor, momentum)
        F.bank_update_(mine, index, anchor)
        torch.testing.assert_close(rows, expected, rtol=1e-12, atol=1e-12)


def test_update_of_a_vanishing_row_stays_finite():
    bank = torch.tensor([[1.0, 0.0]])
    F.bank_update_(bank, torch.tensor([0]), torch.tensor([[-1.0, 0.0]]), 0.5)
    assert torch.equal(bank, torch.zeros(1, 2))


def test_memory_bank_starts_uniform_and_slices_agree():
    from wcord_fast.ops.bank.reference import bank_init_

    bank = MemoryBank(4000, 30, seed=5, bank_id=1)
    s = 1 / math.sqrt(10)
    assert bank.rows.abs().max() <= s and abs(float(bank.rows.mean())) < 0.01 * s
    assert abs(float(bank.rows.var()) - s * s / 3) < 0.02 * s * s / 3
    part = torch.empty(100, 30)
    bank_init_(part, 5, 1, first_row=700)
    assert torch.equal(part, bank.rows[700:800])
    assert not torch.equal(MemoryBank(4000, 30, seed=5, bank_id=0).rows, bank.rows)
