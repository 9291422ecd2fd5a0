"""The parts and messages of ranks: collectives of uneven parts, rows of a shard, a rank without rows, a bad index."""

from __future__ import annotations

import numpy as np
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


def bad_index():
    bank = MemoryBank(N, D, shard="rank", seed=0)
    negatives = NegativeSampler(N, 3, exclude="self", seed=0)
    try:
        F.bank_nce(torch.ones(2, D), bank, torch.tensor([0, N]), negatives=negatives, log_z=1.0)
    except ValueError as error:
        return str(error)
    return ""


def test_a_bad_index_is_refused_before_anything_is_sent(pool):
    assert all("index" in message and str(N) in message for message in pool.run(bad_index))
