"""InfoNCE and the sigmoid loss on a sharded bank: 2 and 3 gloo processes equal one process with the joined batch."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize, pad

from tests.test_distributed_bank import S_DIM, D, batches, sampler_of
from wcord_fast import MemoryBank
from wcord_fast import functional as F
from wcord_fast.distributed import ranks

N = 61
CRITICS = (F.bank_infonce, F.bank_sigmoid)


def anchors_of(f_s):
    """Unit rows [B, D], and other ones for positives."""
    x = normalize(pad(f_s, (0, D - S_DIM), value=0.3), dim=1)
    return x, x.flip(1).contiguous()


def results(bank, batch, negatives, plan, own):
    """Losses and gradients in anchors, positives, scale and bias of both critics, and losses without gradient."""
    f_s, _, idx, _ = batch
    x, positive = anchors_of(f_s)
    scale, bias = torch.tensor(6.0), torch.tensor(-3.0)
    results = []
    for critic in CRITICS:
        inputs = [t.clone().requires_grad_() for t in (x, positive, scale, bias)]
        inputs = inputs if critic is F.bank_sigmoid else inputs[:2]
        options = {"negatives": negatives, "plan": plan}
        if critic is F.bank_sigmoid:
            options |= {"scale": inputs[2], "bias": inputs[3]}
        if own == "given":
            options["positive"] = inputs[1]
        loss = critic(inputs[0], bank, idx, **options)
        wanted = [t for i, t in enumerate(inputs) if i != 1 or own == "given"]
        with torch.no_grad():
            assert torch.equal(critic(inputs[0], bank, idx, **options), loss)
        results.append((loss.detach(), *torch.autograd.grad(loss.sum(), wanted)))
    return results


def on_a_rank(source, k, plan, expected, own):
    rank, world = ranks()
    batch = list(batches(world, rank))[1]
    bank = MemoryBank(N, D, seed=4, shard="rank")
    negatives = sampler_of(source, k, expected) if source != "given" else _given(len(batch[2]), rank)
    return results(bank, batch, negatives, plan, own)


def _given(batch, rank):
    return torch.randint(N, (batch, 6), generator=torch.Generator().manual_seed(rank))


@pytest.mark.parametrize("own", ["bank", "given"])
@pytest.mark.parametrize(
    ("source", "k", "plan", "expected"),
    [
        ("class", 7, "gather", False),
        ("class", 7, "dense", False),
        ("self", 1, "gather", False),  # some parts hold no negative of an anchor
        ("none", "all", "dense", False),
        ("weighted", 9, "auto", False),
        ("class", 7, "auto", True),
        ("given", 6, "auto", False),
    ],
)
def test_ranks_equal_one_process(pool, source, k, plan, expected, own):
    parts = pool.run(on_a_rank, source, k, plan, expected, own)
    world = len(parts)
    batch = list(batches(world))[1]
    sizes = [len(list(batches(world, rank))[1][2]) for rank in range(world)]
    rows = torch.cat([_given(size, rank) for rank, size in enumerate(sizes)])
    negatives = sampler_of(source, k, expected) if source != "given" else rows
    whole = results(MemoryBank(N, D, seed=4), batch, negatives, plan, own)
    for i, wanted in enumerate(whole):
        for j, answer in enumerate(wanted):
            ours = [part[i][j] for part in parts]  # scalars: each rank has its own anchors' part
            joined = sum(ours) if answer.dim() == 0 else torch.cat(ours)
            torch.testing.assert_close(joined, answer, rtol=2e-5, atol=1e-5)
