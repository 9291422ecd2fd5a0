"""Labels below 0: such a row is excluded for itself only, and is a negative of every other row."""

from __future__ import annotations

import pytest
import torch

from tests.crd_oracle import nce_per_anchor
from wcord_fast import MemoryBank, NegativeSampler, WCoRDLoss
from wcord_fast import functional as F
from wcord_fast.ops.bank.class_sums import ClassSums

N, D, TAU = 57, 6, 0.3
LABELS = torch.randint(-3, 5, (N,), generator=torch.Generator().manual_seed(0))
ANCHORS = torch.cat((torch.arange(N), torch.tensor([3, 3])))
# [B, N]: the rule, written out
POOL = (ANCHORS[:, None] != torch.arange(N)) & ((LABELS[ANCHORS][:, None] != LABELS) | (LABELS < 0))
BACKENDS = ("reference", "native")


def rows_of_the_pools() -> list[torch.Tensor]:
    return [pool.nonzero()[:, 0] for pool in POOL]


def problem():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(len(ANCHORS), D, generator=g, dtype=torch.float64)
    return x, torch.randn(N, D, generator=g, dtype=torch.float64)


@pytest.mark.filterwarnings("ignore:k = .* exceeds a pool")  # that of other anchors, which then repeat rows
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("labels", [LABELS, LABELS.to(torch.int8), LABELS.tolist(), LABELS.clamp(min=-1).numpy()])
def test_a_pool_drawn_to_its_last_row(labels, backend):
    for anchor, pool in zip(ANCHORS, rows_of_the_pools(), strict=True):
        rows = NegativeSampler(N, len(pool), labels=labels, seed=2).draw(anchor[None], backend=backend)
        assert torch.equal(rows[0].sort().values, pool)


@pytest.mark.parametrize("backend", BACKENDS)
def test_draws_cover_exactly_the_pool(backend):
    seen = torch.zeros(len(ANCHORS), N, dtype=torch.bool)
    for replacement in (True, False):
        sampler = NegativeSampler(N, 30, labels=LABELS, replacement=replacement, seed=3)
        for _ in range(20):
            seen.scatter_(1, sampler.draw(ANCHORS, backend=backend), True)
            sampler.advance()
    assert torch.equal(seen, POOL)


@pytest.mark.parametrize("plan", ["gather", "dense"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_whole_pool_against_brute_force(plan, backend):
    x, bank = problem()
    sampler = NegativeSampler(N, "all", labels=LABELS, seed=4)
    options = {"negatives": sampler, "plan": plan, "backend": backend}
    pools = rows_of_the_pools()
    for call in (F.bank_nce, F.bank_mean_score):
        ours, theirs = (x.clone().requires_grad_() for _ in range(2))
        if call is F.bank_nce:
            value = call(ours, bank, ANCHORS, log_z=2.0, temperature=TAU, **options)
            rows = [torch.cat((a[None], pool))[None] for a, pool in zip(ANCHORS, pools, strict=True)]
            z = torch.tensor(2.0, dtype=torch.float64).exp()
            want = [nce_per_anchor(theirs[i : i + 1], bank, r, z, TAU, N) for i, r in enumerate(rows)]
            want = torch.cat(want)
        else:
            value = call(ours, bank, ANCHORS, **options)
            want = torch.stack([(theirs[i] @ bank[pool].T).mean() for i, pool in enumerate(pools)])
        torch.testing.assert_close(value, want, rtol=1e-10, atol=1e-12)
        weight = torch.arange(1.0, len(x) + 1, dtype=torch.float64)
        grads = [torch.autograd.grad((v * weight).sum(), t)[0] for v, t in ((value, ours), (want, theirs))]
        torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-11)
    log_z = F.bank_log_z(x, bank, ANCHORS, temperature=TAU, **options)
    scores = torch.cat([x[i] @ bank[torch.cat((ANCHORS[i, None], pool))].T for i, pool in enumerate(pools)])
    torch.testing.assert_close(log_z, (N * (scores / TAU).exp().mean()).log(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("expected", [False, True])
def test_mean_score_by_class_sums_equals_brute_force(expected):
    x, rows = problem()
    bank = MemoryBank(N, D, dtype=torch.float64, seed=1)
    bank.rows.copy_(rows)
    options = {"k": 5, "expected": True} if expected else {"k": "all"}
    sampler = NegativeSampler(N, labels=LABELS, seed=5, **options)
    for _ in range(3):
        value = F.bank_mean_score(x, bank, ANCHORS, negatives=sampler)
        want = torch.stack([(x[i] @ bank.rows[pool].T).mean() for i, pool in enumerate(rows_of_the_pools())])
        torch.testing.assert_close(value, want, rtol=1e-11, atol=1e-13)
        bank.update_(ANCHORS, x)
        x = x.flip(0)
    exact = ClassSums(bank.rows, *map(sampler.spec().table, ("label", "class_start"))).sums
    torch.testing.assert_close(bank._sums.sums, exact, rtol=0, atol=1e-13)


def test_the_sums_of_unlabelled_rows_take_no_memory():
    labels = torch.full((5000,), -1)
    labels[::100] = torch.arange(50) % 4
    bank, sampler = MemoryBank(5000, 3, seed=0), NegativeSampler(5000, "all", labels=labels)
    F.bank_mean_score(torch.randn(2, 3), bank, torch.tensor([0, 1]), negatives=sampler)
    assert bank._sums.sums.shape == (5, 3)


@pytest.mark.parametrize("labels", [torch.full((9,), -1), torch.arange(9), torch.tensor([-1, 0, 0, 1, 1, 2, 3, -1, 4])])
def test_classes_of_one_row_in_any_place(labels):
    bank = MemoryBank(9, 4, seed=1)
    sampler = NegativeSampler(9, "all", labels=labels, exclude="class")
    x, index = torch.randn(9, 4), torch.arange(9)
    by_sums = F.bank_mean_score(x, bank, index, negatives=sampler)
    torch.testing.assert_close(by_sums, F.bank_mean_score(x, bank.rows, index, negatives=sampler))


def unsigned(labels):
    return labels.numpy().astype("uint64")


def test_labels_without_unlabelled_rows_give_unchanged_draws():
    labels = torch.tensor([7, 2, 40, 2, 7, 7, 2**40, 40])
    assert NegativeSampler(8, 2, labels=labels).spec().table("label").tolist() == [1, 0, 2, 0, 1, 1, 3, 2]
    draws = [NegativeSampler(8, 3, labels=given, seed=1).draw(torch.arange(8)) for given in (labels, unsigned(labels))]
    assert torch.equal(*draws)


def test_labels_decide_the_default_exclusion():
    known = torch.tensor([-1, 0, 0, 1, 1, -1, -1])
    assert NegativeSampler(7, 2, labels=known).exclude == "self"
    assert NegativeSampler(7, 2, labels=torch.full((7,), -1)).exclude == "self"
    known[0] = 2
    assert NegativeSampler(7, 2, labels=known).exclude == "class"


def test_negatives_of_the_batch():
    loss = WCoRDLoss(5, 5, N, feat_dim=D, critic="dual", lambda_gckt=1.0, lambda_lckt=0.0, labels=LABELS).eval()
    idx = ANCHORS[::3]
    g = torch.Generator().manual_seed(2)
    f_s, f_t = torch.randn(2, len(idx), 5, generator=g)
    pool = POOL[::3][:, idx]
    e_s, e_t = loss.embed_s(f_s), loss.embed_t(f_t)
    score = torch.stack((e_s @ e_t.T, e_t @ e_s.T))  # [2, B, B]
    value = score.diagonal(dim1=1, dim2=2) - (score * pool).sum(2) / pool.sum(1)
    torch.testing.assert_close(loss(f_s, f_t, idx), -4 * value.mean(1).sum())
