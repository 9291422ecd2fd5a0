"""FeatureQueue(shard="rank") on 2 and 3 gloo processes: rows and losses are those of one process."""

from __future__ import annotations

import itertools

import pytest
import torch

from wcord_fast import FeatureQueue, NegativeSampler, WCoRDLoss
from wcord_fast import functional as F
from wcord_fast.distributed import bytes_sent, ranks
from wcord_fast.ops.contrast import sharded
from wcord_fast.ops.contrast.reference import Contrast
from wcord_fast.train import bank_files

from .grid import grid
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


@pytest.mark.parametrize(("size", "dtype"), grid([*QUEUES, 4], [torch.float32, torch.bfloat16]))
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


@pytest.mark.parametrize(("critic", "exclude", "size"), grid(CRITICS, ["class", "none"], [4, 11]))
def test_losses_and_gradients_equal_one_process(pool, critic, exclude, size):
    """Empty, half filled, full and written over; every gradient is taken after the push."""
    steps = SIZES[pool.world]
    expected = train(critic, exclude, size, None, steps)
    for result in pool.run(train, critic, exclude, size, "rank", steps):
        for step, (ours, wanted) in enumerate(zip(result, expected, strict=True)):
            for a, b in zip(ours, wanted, strict=True):
                torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6, msg=lambda m, step=step: f"step {step}: {m}")


def write(folder, size):
    queue = pushed(size, True, torch.float32, SIZES[ranks().world], "rank")
    bank_files._write(folder / "split", {"queue": queue})
    return {name: value for name, value in queue.state_dict().items() if name != "rows"}


def read(folder, size, state):
    """All rows after a load of one process's files, and after one of its state dict."""
    from_files, from_state = (FeatureQueue(size, 3, labels=True, shard="rank") for _ in range(2))
    bank_files._read(folder / "whole", {"queue": from_files})
    from_state.load_state_dict(state)
    return from_files.all_rows(), from_state.all_rows(), int(from_state.pushed), from_state.labels


def test_another_number_of_processes_takes_up_a_queue(pool, tmp_path):
    size = QUEUES[0]
    whole = pushed(size, True, torch.float32, SIZES[pool.world])
    bank_files._write(tmp_path / "whole", {"queue": whole})
    for *rows, total, labels in pool.run(read, tmp_path, size, whole.state_dict()):
        assert all(torch.equal(held, whole.rows) for held in rows)
        assert total == int(whole.pushed) and torch.equal(labels, whole.labels)
    state = pool.run(write, tmp_path, size)[0]
    fresh = FeatureQueue(size, 3, labels=True)
    bank_files._read(tmp_path / "split", {"queue": fresh})
    fresh.load_state_dict({**state, "rows": fresh.rows})
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in fresh.state_dict().items())


def step_bytes(size):
    loss = WCoRDLoss(S_DIM, T_DIM, critic="sigmoid", negatives="queue", queue_size=size, shard="rank", lambda_lckt=0.0)
    for _ in range(2):
        before = bytes_sent()
        loss(torch.ones(2, S_DIM), torch.ones(2, T_DIM))
    return bytes_sent() - before


def test_bytes_of_a_step_do_not_depend_on_the_size(pool):
    assert pool.run(step_bytes, 4) == pool.run(step_bytes, 400)


def refused():
    """One rank has a bad anchor; only rank 0 holds rows."""
    rank = ranks().rank
    anchors, rows = torch.ones(2, D), torch.ones(int(rank == 0), D)
    if rank == 0:
        anchors[1, 2] = torch.nan
    positives = torch.ones(2, D)
    joined = sharded.join(anchors, positives, None)
    c = Contrast("infonce", anchors, positives, rows, -1, False, 5.0, 0.0, None, None, None, None)
    try:
        sharded.mean_loss(c, joined, "auto")
    except ValueError as error:
        return str(error)
    return ""


def test_a_bad_row_is_refused_on_every_rank(pool):
    assert all("row 1 holds nan" in message for message in pool.run(refused))


def step_refused(options):
    """A training step where rank 0 alone has a bad feature: its error, and whether banks and queues are as before."""
    torch.manual_seed(0)
    loss = WCoRDLoss(S_DIM, T_DIM, N, **{"lambda_lckt": 0.0, "feat_dim": D, "seed": 1, **options})
    f_s, f_t = torch.randn(2, S_DIM), torch.randn(2, T_DIM)
    loss(f_s, f_t, torch.arange(2))
    if ranks().rank == 0:
        f_s[1, 2] = torch.nan
    kept = {name: t for name, t in loss.named_buffers() if not name.startswith("embed")}  # a power iteration is no harm
    before = {name: value.clone() for name, value in kept.items()}
    try:
        loss(f_s, f_t, torch.arange(2))
    except ValueError as error:
        return str(error), all(torch.equal(t.nan_to_num(), before[name].nan_to_num()) for name, t in kept.items())
    return "", False


@pytest.mark.parametrize(
    "options",
    [
        {"critic": "infonce", "negatives": "batch"},
        {"critic": "sigmoid", "negatives": "queue", "queue_size": 8},
        {"critic": "infonce", "negatives": "queue", "queue_size": 8, "shard": "rank"},
        {"critic": "nce_sn", "num_negatives": 3},
        {"critic": "sigmoid", "num_negatives": 3, "shard": "rank"},
        {"critic": "dual", "negatives": "batch"},
        {"lambda_gckt": 0.0, "lambda_lckt": 1.0, "ot_scope": "global"},
        {"lambda_gckt": 0.0, "lambda_lckt": 1.0, "lckt_center": "running"},
    ],
)
def test_a_bad_feature_on_one_rank_raises_on_every_rank_and_changes_nothing(pool, options):
    first, *others = pool.run(step_refused, options)
    assert first == ("f_s: row 1 holds nan; expected finite values", True)
    assert set(others) == {("rank 0 has refused the arguments of this call; its own error says why", True)}


def as_bank(size, steps, shard):
    """Losses and gradients of anchors, which are equal on all ranks, against a full queue."""
    queue = pushed(size, False, torch.float32, steps, shard)
    everything = NegativeSampler(size, "all", exclude="none", seed=1)
    g = torch.Generator().manual_seed(9)
    anchors, positives = torch.randn(5, 3, generator=g).requires_grad_(), torch.randn(5, 3, generator=g)
    rows = torch.zeros(5, dtype=torch.long)
    losses = F.bank_infonce(anchors, queue, rows, negatives=everything, positive=positives)
    return losses.detach(), torch.autograd.grad(losses.sum(), anchors)[0]


def test_a_full_queue_is_a_bank(pool):
    size, steps = QUEUES[0], SIZES[pool.world]
    expected = as_bank(size, steps, None)
    for result in pool.run(as_bank, size, steps, "rank"):
        for a, b in zip(result, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
