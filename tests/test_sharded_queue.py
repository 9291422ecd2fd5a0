"""FeatureQueue(shard="rank") on 2 and 3 gloo processes: rows and losses are those of one process."""

from __future__ import annotations

import itertools

import pytest
import torch

from wcord_fast import FeatureQueue, WCoRDLoss
from wcord_fast.distributed import ranks

from .rank_pool import Pool

N, S_DIM, T_DIM, D = 40, 6, 5, 4
LABELS = torch.arange(N) % 3
LABELS[::7] = -1
SIZES = {2: [[3, 1], [1, 5], [2, 2], [9, 4]], 3: [[3, 1, 2], [1, 5, 1], [2, 2, 2], [9, 4, 3]]}  # pairs of each rank
QUEUES = [11, 13]  # sizes; with 3 ranks the parts of 11 are 4, 4, 3
CRITICS = ("infonce", "sigmoid")


@pytest.fixture(scope="module", params=[2, 3])
def pool(request):
    pool = Pool(request.param)
    yield pool
    pool.close()


def slices(sizes):
    ends = [0, *itertools.accumulate(sizes)]
    return [slice(a, b) for a, b in itertools.pairwise(ends)]


def pushed(size, labels, dtype, steps, shard=None):
    """A queue after all steps: of this rank's rows where it is in a group, or of the joined batches."""
    queue = FeatureQueue(size, 3, labels=labels, dtype=dtype, shard=shard)
    g = torch.Generator().manual_seed(0)
    for sizes in steps:
        rows, tags = torch.randn(sum(sizes), 3, generator=g), torch.randint(5, (sum(sizes),), generator=g)
        at = slices(sizes)[ranks().rank] if ranks().world > 1 else slice(None)
        queue.push_(rows[at], tags[at] if labels else None)
    return queue


def push_on_rank(size, labels, dtype, steps):
    queue = pushed(size, labels, dtype, steps, "rank")
    return len(queue.rows), queue.all_rows(), queue.labels, int(queue.pushed), queue.is_filled(), queue.first_row


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [*QUEUES, 4])
def test_parts_hold_the_rows_of_one_process(pool, size, dtype):
    for count in range(5):
        steps = SIZES[pool.world][:count]
        expected = pushed(size, True, dtype, steps)
        for held, rows, labels, total, filled, first in pool.run(push_on_rank, size, True, dtype, steps):
            assert held <= -(-size // pool.world) and total == int(expected.pushed)
            assert torch.equal(rows, expected.rows) and torch.equal(labels, expected.labels)
            assert torch.equal(filled, expected.is_filled()[first : first + held])


def train(critic, exclude, size, shard, steps):
    """Per step: this rank's loss and the sum over ranks of the weighted gradients; the state at the end."""
    torch.manual_seed(3)
    loss = WCoRDLoss(
        S_DIM, T_DIM, N, labels=LABELS, exclude=exclude, critic=critic, negatives="queue", queue_size=size, shard=shard,
        lambda_lckt=0.0, lambda_gckt=1.0, temperature=0.2, feat_dim=D, seed=1,
    )  # fmt: skip
    inputs = [
        loss.embed_s.linear.weight,
        loss.embed_t.linear.weight,
        *(loss.score_map or torch.nn.Module()).parameters(),
    ]
    g, result = torch.Generator().manual_seed(0), []
    for sizes in [*steps, steps[0]]:
        count = sum(sizes)
        f_s, f_t = torch.randn(count, S_DIM, generator=g), torch.randn(count, T_DIM, generator=g)
        idx = torch.randint(N, (count,), generator=g)
        at = slices(sizes)[ranks().rank] if ranks().world > 1 else slice(None)
        value = loss(f_s[at], f_t[at], idx[at]) * (len(idx[at]) / count)
        grads = torch.autograd.grad(value, inputs)
        if ranks().world > 1:
            for t in (*grads, part := value.detach().clone()):
                torch.distributed.all_reduce(t)
            value = part
        result.append((value.detach(), *grads))
    loss.eval()
    final = loss(f_s[at], f_t[at], idx[at]).detach() * (len(idx[at]) / count)
    if ranks().world > 1:
        torch.distributed.all_reduce(final)
    return [*result, (final,)]


@pytest.mark.parametrize("size", [4, 11])
@pytest.mark.parametrize("exclude", ["class", "none"])
@pytest.mark.parametrize("critic", CRITICS)
def test_losses_and_gradients_equal_one_process(pool, critic, exclude, size):
    """Empty, half filled, full and written over; every gradient is taken after the push."""
    steps = SIZES[pool.world]
    expected = train(critic, exclude, size, None, steps)
    for result in pool.run(train, critic, exclude, size, "rank", steps):
        for step, (ours, wanted) in enumerate(zip(result, expected, strict=True)):
            for a, b in zip(ours, wanted, strict=True):
                torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6, msg=lambda m, step=step: f"step {step}: {m}")
