"""Losses that differ between ranks, or were made for another group: every rank raises before any state changes."""

from __future__ import annotations

import pytest
import torch

from wcord_fast import CRDLoss, WCoRDLoss
from wcord_fast.distributed import ranks

N, D, S_DIM, T_DIM = 61, 12, 7, 9
LABELS = torch.arange(N) % 5


UNLIKE = {  # the options of rank 1, and a piece of the message
    "seed": ({"seed": 12}, "'seed 12, step 0' where rank 0 has 'seed 11, step 0'"),
    "labels": ({"labels": LABELS.flip(0)}, "checksums of its tables"),
    "momentum": ({"nce_m": 0.9}, "momentum=0.9"),
    "k": ({"nce_k": 8}, "k=8"),
    "shard": ({"shard": "rank"}, "shard='rank'"),
}


def unlike(difference):
    options = {"nce_k": 9, "labels": LABELS, "seed": 11} | (UNLIKE[difference][0] if ranks().rank == 1 else {})
    loss = CRDLoss(S_DIM, T_DIM, N, feat_dim=D, **options)
    with pytest.raises(ValueError) as error:
        loss(torch.ones(2, S_DIM), torch.ones(2, T_DIM), torch.tensor([0, 1]))
    return str(error.value), int(loss.contrast.sampler.step)


@pytest.mark.parametrize("difference", UNLIKE)
def test_losses_that_differ_between_ranks_raise_before_any_change(pool, difference):
    for message, step in pool.run(unlike, difference):
        assert (
            "CRDLoss: expected equal options on all ranks, but rank 1 has" in message
            and UNLIKE[difference][1] in message
        )
        assert step == 0


def of_another_group():
    """A loss whose state dict is another rank's, and one whose banks were made for another number of ranks."""
    loss = CRDLoss(S_DIM, T_DIM, N, feat_dim=D, nce_k=9, seed=1)
    batch = (torch.ones(2, S_DIM), torch.ones(2, T_DIM), torch.tensor([0, 1]))
    loss(*batch)
    if ranks().rank == 1:
        loss.contrast.sampler.advance()
    loss.load_state_dict(loss.state_dict())
    with pytest.raises(ValueError) as unlike:
        loss(*batch)
    early = CRDLoss(S_DIM, T_DIM, N, feat_dim=D, nce_k=9, seed=1, shard="rank")
    for bank in (early.contrast.memory_v1, early.contrast.memory_v2):
        bank.ranks = type(bank.ranks)(0, 1)  # as before init_process_group
    with pytest.raises(ValueError) as made_early:
        early(*batch)
    return str(unlike.value), str(made_early.value)


def test_state_of_another_rank_and_banks_made_before_the_group_raise(pool):
    for unlike, early in pool.run(of_another_group):
        assert "'seed 1, step 2' where rank 0 has 'seed 1, step 1'" in unlike
        assert "make the loss after init_process_group" in early


OPTIONS = {"critic": "infonce", "negatives": "batch", "feat_dim": 8}
WCORD_UNLIKE = {
    "eps": {"ot_eps": 0.7},
    "norm": {"embed_norm": "ball"},
    "exclude": {"exclude": "none"},
    "labels": {"labels": LABELS.flip(0)},
}


def unlike_wcord(difference):
    options = {"labels": LABELS, "exclude": "class"} | (WCORD_UNLIKE[difference] if ranks().rank == 1 else {})
    loss = WCoRDLoss(S_DIM, S_DIM, N, **OPTIONS, **options)
    with pytest.raises(ValueError) as error:
        loss(torch.ones(2, S_DIM), torch.ones(2, S_DIM), torch.tensor([0, 1]))
    return str(error.value)


@pytest.mark.parametrize("difference", WCORD_UNLIKE)
def test_every_option_and_the_labels_without_a_bank_are_compared(two_ranks, difference):
    for message in two_ranks.run(unlike_wcord, difference):
        assert "WCoRDLoss: expected equal options on all ranks, but rank 1 has" in message


def refused_by_one():
    """The local term of rank 0 has a row without direction, once it is centred; all ranks raise and none waits."""
    torch.manual_seed(0)
    options = {"lckt_features": "raw", "lckt_center": "batch"}
    loss = WCoRDLoss(S_DIM, S_DIM, N, num_negatives=9, feat_dim=8, seed=1, **options)
    x, idx = torch.randn(2, S_DIM), torch.tensor([0, 1])
    if ranks().rank == 0:
        x[1] = x[0]
    with pytest.raises(ValueError) as error:
        loss(x, torch.randn(2, S_DIM), idx)
    loss(torch.randn(2, S_DIM), torch.randn(2, S_DIM), idx)  # the ranks are still in step
    return str(error.value)


def test_a_local_term_refused_on_one_rank_ends_the_call_of_all(two_ranks):
    first, *others = two_ranks.run(refused_by_one)
    assert "row 0 is zero once centred" in first
    assert all("rank 0 has refused" in message for message in others)


def global_pairs(given):
    rank, world = ranks()
    torch.manual_seed(0)
    loss = WCoRDLoss(S_DIM, S_DIM, None, lckt_pairs="prior", lambda_lckt=1.0, ot_scope="global", **OPTIONS)
    x, y = (torch.randn(4 * world, S_DIM, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    own = slice(4 * rank, 4 * rank + 4)
    idx = {"none": None, "rows": torch.arange(4 * world)[own], "unknown": torch.full((4,), -1)}[given]
    loss(x[own], y[own], idx)
    alone = WCoRDLoss(S_DIM, S_DIM, None, lckt_pairs="prior", lambda_lckt=1.0, **OPTIONS)
    alone.load_state_dict(loss.state_dict())
    both = alone.local(*(e.frozen(t) for e, t in ((alone.embed_s, x), (alone.embed_t, y))), torch.arange(4 * world))
    return float(loss.terms["lckt"]), float(both)


@pytest.mark.parametrize("given", ["none", "rows", "unknown"])
def test_pairs_of_all_ranks_are_those_of_one_process(two_ranks, given):
    for value, expected in two_ranks.run(global_pairs, given):
        assert value == pytest.approx(expected, rel=1e-6)
