"""The O(B * D) mean score of a whole pool: equal to the pass over the bank, through any history of the bank."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch

from wcord_fast import MemoryBank, NegativeSampler, WCoRDLoss
from wcord_fast import functional as F
from wcord_fast.ops.bank.class_sums import ClassSums

N, D, B, C = 37, 6, 9, 4


def sampler(source: str, **options) -> NegativeSampler:
    labels = torch.arange(N) % C if source == "class" else None
    return NegativeSampler(N, "all", labels=labels, exclude=source, seed=1, **options)


def both(anchor, bank, index, negatives):
    """(from the sums, from a pass over the bank)"""
    return (
        F.bank_mean_score(anchor, bank, index, negatives=negatives),
        F.bank_mean_score(anchor, bank.rows.clone(), index, negatives=negatives),
    )


def assert_right(bank, negatives, seed=0):
    g = torch.Generator().manual_seed(seed)
    anchor = torch.randn(B, D, generator=g).requires_grad_()
    index = torch.randint(N, (B,), generator=g)
    fast, slow = both(anchor, bank, index, negatives)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-6)
    weight = torch.randn(B, generator=g)
    grads = [torch.autograd.grad((v * weight).sum(), anchor)[0] for v in (fast, slow)]
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("source", ["none", "self", "class"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_sums_follow_many_updates_with_duplicates(source, dtype):
    bank, negatives, g = MemoryBank(N, D, dtype=dtype, seed=2), sampler(source), torch.Generator().manual_seed(3)
    assert_right(bank, negatives)
    kept = bank._sums
    for step in range(30):
        index = torch.randint(N, (B,), generator=g)
        index[3] = index[0]
        bank.update_(index, torch.randn(B, D, generator=g))
        assert_right(bank, negatives, step)
        assert bank._sums is kept  # followed, not rebuilt
    exact = ClassSums(
        bank.rows, *(map(negatives.spec().table, ("label", "class_start")) if source == "class" else (None,))
    ).sums
    torch.testing.assert_close(kept.sums, exact, rtol=0, atol=1e-13)


def test_an_expected_draw_has_the_same_mean():
    bank, index = MemoryBank(N, D, seed=2), torch.arange(B)
    anchor, labels = torch.randn(B, D), torch.arange(N) % C
    expected = NegativeSampler(N, 5, labels=labels, expected=True, seed=1)
    fast, slow = both(anchor, bank, index, expected)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-6)
    assert bank._sums is not None


def written(times):
    rows = torch.randn(N, D, dtype=torch.float64)
    for _ in range(times):
        rows.mul_(1.0)
    return rows


def test_rows_written_behind_the_banks_back_are_noticed():
    bank, negatives = MemoryBank(N, D, seed=2), sampler("class")
    histories = {
        "in place": lambda: bank.rows.mul_(1.5),
        "a state dict": lambda: bank.load_state_dict(MemoryBank(N, D, seed=9).state_dict()),
        "the bare tensor": lambda: F.bank_update_(bank.rows, torch.tensor([1, 2]), torch.randn(2, D)),
        "another dtype": lambda: bank.to(torch.float64),
        "another tensor, written as often": lambda: setattr(bank, "rows", written(bank.rows._version)),
    }
    for name, write in histories.items():
        assert_right(bank, negatives)
        before = bank._sums
        write()
        assert_right(bank, negatives)
        assert bank._sums is not before, name
    bank.update_(torch.tensor([4, 4]), torch.randn(2, D))
    assert_right(bank, negatives)


def test_another_sampler_makes_new_sums():
    bank = MemoryBank(N, D, seed=2)
    for source in ("class", "none", "self", "class"):
        assert_right(bank, sampler(source))


def test_a_failed_update_changes_neither_rows_nor_sums():
    bank, negatives = MemoryBank(N, D, seed=2), sampler("class")
    assert_right(bank, negatives)
    rows, sums = bank.rows.clone(), bank._sums.sums.clone()
    with pytest.raises(ValueError, match=r"index\[1\].*got 37"):
        bank.update_(torch.tensor([0, N]), torch.randn(2, D))
    with pytest.raises(ValueError, match="rows: row 0 holds nan"):
        bank.update_(torch.tensor([0]), torch.full((1, D), torch.nan))
    assert torch.equal(bank.rows, rows) and torch.equal(bank._sums.sums, sums)


@pytest.mark.parametrize("updates", range(4))
def test_copies_and_pickles_make_their_own_sums(updates):
    bank, negatives = MemoryBank(N, D, seed=2), sampler("none")  # whose label, None, a copy's sums share
    assert_right(bank, negatives)
    for _ in range(updates):
        bank.update_(torch.arange(B), torch.randn(B, D))
    for other in (copy.deepcopy(bank), pickle.loads(pickle.dumps(bank))):
        for _ in range(6):  # a copy's rows count their writes from the start, and come by the original's number
            other.update_(torch.arange(B), torch.randn(B, D))
            assert_right(other, negatives)
    assert_right(bank, negatives)
    torch.save(bank, io.BytesIO())


def test_class_sums_are_used_only_for_expected_draws_by_class():
    bank, index = MemoryBank(N, D, seed=2), torch.arange(B)
    anchor = torch.randn(B, D)
    F.bank_mean_score(anchor, bank, index, negatives=sampler("self"), plan="dense")
    F.bank_mean_score(anchor, bank, index, negatives=NegativeSampler(N, 5, seed=0))
    F.bank_nce(anchor, bank, index, negatives=sampler("self"), log_z=3.0)
    assert bank._sums is None


def test_bad_values_are_refused_on_the_class_sums_path():
    bank, negatives = MemoryBank(N, D, seed=2), sampler("class")
    with pytest.raises(ValueError, match=r"index\[2\].*got -1"):
        F.bank_mean_score(torch.randn(3, D), bank, torch.tensor([0, 1, -1]), negatives=negatives)
    with pytest.raises(ValueError, match=r"anchor: row .*holds inf"):
        F.bank_mean_score(torch.full((1, D), torch.inf), bank, torch.tensor([0]), negatives=negatives)


def test_class_sums_path_does_not_read_the_bank():
    """The bank's rows are not read at all (class pools): after the sums are made they could be anything."""
    bank, negatives = MemoryBank(N, D, seed=2), sampler("class")
    anchor, index = torch.randn(B, D), torch.arange(B)
    before = F.bank_mean_score(anchor, bank, index, negatives=negatives)
    bank.rows.data.fill_(torch.nan)  # .data is not counted as a write
    assert torch.equal(F.bank_mean_score(anchor, bank, index, negatives=negatives), before)


def test_wcord_dual_all_equals_the_dense_plan():
    labels = torch.arange(N) % C
    losses = []
    for plan in ("auto", "dense"):
        torch.manual_seed(0)
        loss_fn = WCoRDLoss(
            5, 5, N, feat_dim=D, critic="dual", negatives="bank", num_negatives="all", labels=labels, plan=plan, seed=3
        )
        g, values = torch.Generator().manual_seed(1), []
        for _ in range(5):
            f_s, f_t = torch.randn(2, B, 5, generator=g)
            loss = loss_fn(f_s.requires_grad_(), f_t, torch.randint(N, (B,), generator=g))
            loss.backward()
            values.append(loss.detach())
        losses.append(torch.stack([*values, loss_fn.embed_s.linear.bias.grad.norm()]))
        assert (loss_fn.contrast.memory_v1._sums is not None) == (plan == "auto")
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)


def test_compiled_code_takes_the_dense_plan_and_leaves_no_stale_sums():
    bank, negatives = MemoryBank(N, D, seed=2), sampler("class")
    anchor, index = torch.randn(B, D), torch.arange(B)
    eager = F.bank_mean_score(anchor, bank, index, negatives=negatives)

    @torch.compile(fullgraph=True)
    def step(anchor, index):
        score = F.bank_mean_score(anchor, bank, index, negatives=negatives)
        F.bank_update_(bank, index, anchor)
        return score

    torch.testing.assert_close(step(anchor, index), eager, rtol=1e-5, atol=1e-6)
    assert_right(bank, negatives)
