"""Losses that differ between ranks, or were made for another group: every rank raises before any state changes."""

from __future__ import annotations

import pytest
import torch

from wcord_fast import CRDLoss
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
