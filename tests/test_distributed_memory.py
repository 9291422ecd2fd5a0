"""A bank that no process could hold alone trains when it is sharded."""

from __future__ import annotations

import resource

import pytest
import torch

from wcord_fast import CRDLoss

from .rank_pool import Pool

ROWS, D = 250_000, 128  # 128 MB a bank and direction
ROOM = 200 << 20  # memory beyond the present for each process: less than both banks, more than its part of them


def address_space():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def train(shard):
    """The mean loss of two steps under the memory limit, or the error."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + ROOM, before[1]))
    try:
        loss = CRDLoss(8, 8, ROWS, feat_dim=D, nce_k=64, exclude="self", seed=0, shard=shard)
        generator = torch.Generator().manual_seed(torch.distributed.get_rank())
        values = []
        for _ in range(2):
            f_s, f_t = torch.randn(2, 4, 8, generator=generator)
            value = loss(f_s, f_t, torch.randint(ROWS, (4,), generator=generator))
            value.backward()
            values.append(float(value.detach()))
        return len(loss.contrast.memory_v1.rows), values
    except (MemoryError, RuntimeError) as error:
        return 0, str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("world", [2, 3])
def test_sharded_bank_trains_under_a_memory_limit_below_the_whole_bank(world):
    pool = Pool(world)
    try:
        for rows, message in pool.run(train, None):
            assert rows == 0 and "memory" in str(message).lower()
        parts = pool.run(train, "rank")
        assert sum(rows for rows, _ in parts) == ROWS and all(0 < rows <= -(-ROWS // world) for rows, _ in parts), parts
        assert all(0 < value < float("inf") for _, values in parts for value in values)
    finally:
        pool.close()
