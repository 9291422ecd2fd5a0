"""FeatureQueue on 2 gloo processes: every rank holds the rows of all ranks, in rank order, as one process does."""

from __future__ import annotations

import pytest
import torch

from wcord_fast import FeatureQueue
from wcord_fast.distributed import ranks

SIZES = [[3, 1], [1, 5], [2, 2], [9, 4]]  # rows that the two ranks push, step by step


def pushed(labels, dtype, rank=None):
    """The state of a queue after all steps: of `rank`'s rows, or of the joined batches."""
    queue = FeatureQueue(8, 3, labels=labels, dtype=dtype)
    g = torch.Generator().manual_seed(0)
    for sizes in SIZES:
        rows, tags = torch.randn(sum(sizes), 3, generator=g), torch.randint(5, (sum(sizes),), generator=g)
        if rank is not None:
            rows, tags = rows.split(sizes)[rank], tags.split(sizes)[rank]
        queue.push_(rows, tags.int() if labels else None)
    return queue.state_dict()


def on_rank(labels, dtype):
    return pushed(labels, dtype, ranks().rank)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("labels", [False, True])
def test_ranks_equal_one_process(two_ranks, labels, dtype):
    expected = pushed(labels, dtype)
    for state in two_ranks.run(on_rank, labels, dtype):
        assert all(torch.equal(state[name], value) for name, value in expected.items())


def refused():
    queue = FeatureQueue(8, 3)
    rows = torch.zeros(2, 3)
    if ranks().rank == 1:
        rows[1, 0] = torch.nan
    try:
        queue.push_(rows)
    except ValueError as error:
        return str(error), int(queue.pushed)
    return "", -1


def test_bad_row_is_refused_on_every_rank(two_ranks):
    for message, count in two_ranks.run(refused):
        assert "rows: row 3 holds nan" in message and count == 0
