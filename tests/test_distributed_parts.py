"""The parts and messages of ranks: collectives of uneven parts, rows of a shard, a rank without rows, a bad index."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wcord_fast import CRDLoss, MemoryBank, NegativeSampler
from wcord_fast import functional as F
from wcord_fast.distributed import ranks
from wcord_fast.distributed.ranks import gather_rows, scatter_sums, sizes_of

from .test_distributed_bank import CPU, S_DIM, T_DIM, D, N


def collectives():
    rank = ranks().rank
    sizes = sizes_of(rank + 1, CPU)
    values = torch.full((rank + 1, 2), rank, dtype=torch.bfloat16)
    joined, numbers = gather_rows([values, torch.arange(rank + 1)], sizes)
    summed = scatter_sums(torch.arange(sum(sizes) * 3.0).view(-1, 3) * (rank + 1), sizes)
    return sizes, joined, numbers, summed


def test_collectives_of_uneven_parts(pool):
    world = pool.world
    for rank, (sizes, joined, numbers, summed) in enumerate(pool.run(collectives)):
        assert sizes == [r + 1 for r in range(world)]
        assert joined.dtype == torch.bfloat16
        assert joined[:, 0].tolist() == [r for r in range(world) for _ in range(r + 1)]
        assert numbers.tolist() == [i for r in range(world) for i in range(r + 1)]
        first, factor = rank * (rank + 1) // 2, world * (world + 1) // 2
        assert torch.equal(summed, torch.arange(first * 3.0, (first + rank + 1) * 3.0).view(-1, 3) * factor)


def rows_of(path):
    bank = MemoryBank(N, D, shard="rank", seed=0, dtype=torch.bfloat16)
    initial = bank.rows.clone()
    return initial, bank.load_rows_(path).rows, len(MemoryBank(4, 1, shard="rank", seed=0).rows)


def test_initial_rows_are_slices_of_the_whole_and_can_come_from_a_mapped_file(pool, tmp_path):
    values = np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)
    np.save(tmp_path / "rows.npy", values)
    parts = pool.run(rows_of, tmp_path / "rows.npy")
    assert torch.equal(torch.cat([p[0] for p in parts]), MemoryBank(N, D, seed=0, dtype=torch.bfloat16).rows)
    assert torch.equal(torch.cat([p[1] for p in parts]), torch.from_numpy(values).bfloat16())
    assert [p[2] for p in parts] == {2: [2, 2], 3: [2, 2, 0]}[pool.world]


def few_rows():
    torch.manual_seed(0)
    loss = CRDLoss(S_DIM, T_DIM, 4, feat_dim=D, nce_k=2, seed=1, exclude="self", shard="rank")
    f_s = torch.ones(2, S_DIM).requires_grad_()
    value = loss(f_s, torch.ones(2, T_DIM), torch.tensor([0, 3]))
    value.backward()
    return float(value), bool(f_s.grad.isfinite().all())


def test_a_rank_without_rows_takes_part(pool):
    values = pool.run(few_rows)
    assert all(np.isfinite(v) and ok for v, ok in values)


def refused_by_rank_0(call):
    """What is raised on this rank where rank 0 alone gives a bad value."""
    bad = torch.distributed.get_rank() == 0
    bank = MemoryBank(N, D, shard="rank", seed=0)
    before = bank.rows.clone()
    options = {"negatives": NegativeSampler(N, 3, exclude="self", seed=0)}
    anchors, index, positive = torch.ones(2, D), torch.tensor([0, 1]), torch.ones(2, D)
    wrong = torch.full((), torch.nan if bad else 1.0)
    try:
        if call == "index":
            index[1] += N if bad else 0
            F.bank_nce(anchors, bank, index, log_z=1.0, **options)
        elif call == "given":
            rows = torch.tensor([[1], [1 + N if bad else 2]])
            F.bank_nce(anchors, bank, index, log_z=1.0, negatives=rows)
        elif call == "anchor":
            anchors[1, 1] = wrong
            F.bank_infonce(anchors, bank, index, **options)
        elif call == "positive":
            positive[1, 1] = wrong
            F.bank_sigmoid(anchors, bank, index, positive=positive, **options)
        else:
            anchors[1, 1] = wrong
            F.bank_update_(bank, index, anchors)
    except ValueError as error:
        return str(error), torch.equal(bank.rows, before)
    return "", False


@pytest.mark.parametrize(
    "call, message",
    [
        ("index", f"index[1]: expected a row in [0, {N})"),
        ("given", f"negatives[1, 0]: expected a row in [0, {N})"),
        ("anchor", "anchor: row 1 holds nan"),
        ("positive", "positive: row 1 holds nan"),
        ("update", "rows: row 1 holds nan"),
    ],
)
def test_a_bad_value_on_one_rank_is_refused_on_every_rank(pool, call, message):
    assert all(message in raised and unchanged for raised, unchanged in pool.run(refused_by_rank_0, call))
