"""FeatureQueue against a list of rows from which the oldest is dropped."""

from __future__ import annotations

import copy

import pytest
import torch

from wcord_fast import FeatureQueue
from wcord_fast import functional as F
from wcord_fast.distributed import exclude_state
from wcord_fast.ops.queue import push_op

SIZE, DIM = 7, 3


def batch(count, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, DIM, generator=g), torch.randint(-1, 4, (count,), generator=g)


def held(queue):
    """Its (row, label) pairs, oldest first."""
    at = torch.arange(int(queue.pushed) - int(queue.filled), int(queue.pushed)) % queue.size
    return queue.rows[at], None if queue.labels is None else queue.labels[at]


@pytest.mark.parametrize("counts", [[3], [3, 4], [3, 3, 3], [7, 7], [20], [2, 9, 1], [1] * 9])
@pytest.mark.parametrize("labels", [False, True])
def test_the_last_rows_stay(counts, labels):
    queue = FeatureQueue(SIZE, DIM, labels=labels)
    rows, tags = torch.empty(0, DIM), torch.empty(0, dtype=torch.long)
    for step, count in enumerate(counts):
        more, more_tags = batch(count, step)
        assert queue.push_(more, more_tags if labels else None) is queue
        rows, tags = torch.cat((rows, more))[-SIZE:], torch.cat((tags, more_tags))[-SIZE:]
        actual, actual_tags = held(queue)
        assert torch.equal(actual, rows) and (not labels or torch.equal(actual_tags, tags))
        assert int(queue.filled) == len(rows)
        assert torch.equal(queue.is_filled(), torch.arange(SIZE) < len(rows))


def test_queue_begins_empty():
    queue = FeatureQueue(SIZE, DIM, labels=True)
    assert int(queue.filled) == int(queue.pushed) == 0 and not queue.is_filled().any()
    assert not queue.rows.any() and queue.labels.tolist() == [-1] * SIZE


def test_rows_are_detached_and_take_the_dtype_of_the_queue():
    rows = batch(4)[0].double().requires_grad_()
    queue = FeatureQueue(SIZE, DIM, dtype=torch.bfloat16).push_(rows * 2)
    assert queue.rows.dtype == torch.bfloat16 and not queue.rows.requires_grad
    assert torch.equal(queue.rows[:4], (2 * rows).detach().bfloat16())
    assert list(queue.parameters()) == []


@pytest.mark.parametrize("before", [0, 3, 12])
def test_resume_is_exact(before):
    queue, fresh = FeatureQueue(SIZE, DIM, labels=True), FeatureQueue(SIZE, DIM, labels=True)
    for step in range(before):
        queue.push_(*batch(2, step))
    fresh.load_state_dict(copy.deepcopy(queue.state_dict()))
    for step in range(3):
        for one in (queue, fresh):
            one.push_(*batch(5, 100 + step))
    for name, value in queue.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name


def test_a_state_of_another_size_is_refused():
    with pytest.raises(RuntimeError, match="rows"):
        FeatureQueue(SIZE, DIM).load_state_dict(FeatureQueue(SIZE + 1, DIM).state_dict())


def test_memory_equals_the_documented_formula():
    queue = FeatureQueue(SIZE, DIM, dtype=torch.float16, labels=True)
    assert sum(b.nbytes for b in queue.buffers()) == 2 * SIZE * DIM + 8 * SIZE + queue.pushed.nbytes


def test_reset_empties_the_queue_and_to_empty_is_noticed():
    queue = FeatureQueue(SIZE, DIM, labels=True).push_(*batch(4))
    queue.reset_parameters()
    assert int(queue.filled) == 0 and not queue.rows.any() and queue.labels.tolist() == [-1] * SIZE
    lost = FeatureQueue(SIZE, DIM).to("meta").to_empty(device="cpu")
    with pytest.raises(RuntimeError, match="rows, pushed hold no values"):
        lost.push_(batch(2)[0])
    lost.reset_parameters()
    assert int(lost.push_(batch(2)[0]).filled) == 2


def test_a_compiled_push_writes_equal_rows():
    compiled, eager = FeatureQueue(SIZE, DIM, labels=True), FeatureQueue(SIZE, DIM, labels=True)
    push = torch.compile(compiled.push_, backend="eager", fullgraph=True)
    for step in range(4):
        push(*batch(3, step))
        eager.push_(*batch(3, step))
    assert all(torch.equal(a, b) for a, b in zip(compiled.buffers(), eager.buffers(), strict=True))


@pytest.mark.parametrize("labels", [False, True])
def test_opcheck(labels):
    rows, tags = batch(4)
    args = (torch.zeros(SIZE, DIM), torch.zeros(SIZE, dtype=torch.long) if labels else None, torch.tensor(5), rows)
    checked = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(push_op, (*args, tags if labels else None, 0, SIZE), test_utils=checked)


def test_ddp_does_not_broadcast_the_queue():
    model = torch.nn.ModuleDict({"tower": torch.nn.Linear(2, 2), "queue": FeatureQueue(SIZE, DIM, labels=True)})
    exclude_state(model)
    ignored = model._ddp_params_and_buffers_to_ignore
    assert set(ignored) == {"queue.rows", "queue.labels", "queue.pushed"}


@pytest.mark.parametrize(
    ("kind", "message", "options"),
    [
        (ValueError, "size: expected an int of at least 1, got 0", {"size": 0}),
        (TypeError, "size: expected an int", {"size": 2.5}),
        (ValueError, "dim: expected an int of at least 1", {"dim": 0}),
        (TypeError, "dtype: expected one of", {"dtype": torch.int32}),
        (TypeError, "labels: expected True or False", {"labels": 1}),
    ],
)
def test_wrong_options_are_named(kind, message, options):
    with pytest.raises(kind, match=message):
        FeatureQueue(**{"size": SIZE, "dim": DIM, **options})


ROWS, LABELS = batch(4)
BAD = ROWS.clone()
BAD[2, 1] = torch.inf


@pytest.mark.parametrize(
    ("kind", "message", "kept", "args"),
    [
        (TypeError, "rows: expected a torch.Tensor", False, ([1.0],)),
        (TypeError, "rows: expected dtype", False, (ROWS.long(),)),
        (ValueError, r"rows: expected shape \[B, 3\]", False, (ROWS[:, :2],)),
        (ValueError, r"rows: expected shape \[B, 3\] with every", False, (ROWS[:0],)),
        (ValueError, "rows: row 2 holds inf", False, (BAD,)),
        (ValueError, "labels: expected None: the queue keeps none", False, (ROWS, LABELS)),
        (ValueError, "labels: expected one per row", True, (ROWS,)),
        (ValueError, r"labels: expected shape \[4\]", True, (ROWS, LABELS[:3])),
        (TypeError, "labels: expected dtype", True, (ROWS, LABELS.float())),
        (ValueError, "rows: row 2 holds inf", True, (BAD, LABELS)),
    ],
)
def test_wrong_rows_are_named_and_write_nothing(kind, message, kept, args):
    queue = FeatureQueue(SIZE, DIM, labels=kept).push_(ROWS, LABELS if kept else None)
    before = copy.deepcopy(queue.state_dict())
    with pytest.raises(kind, match=message):
        queue.push_(*args)
    assert all(torch.equal(value, before[name]) for name, value in queue.state_dict().items())


def test_a_value_beyond_the_dtype_of_the_queue_is_refused():
    with pytest.raises(ValueError, match="rows: row 0 holds inf"):
        FeatureQueue(SIZE, DIM, dtype=torch.float16).push_(torch.full((1, DIM), 1e6))


def test_a_queue_is_no_bank_to_update():
    queue = FeatureQueue(SIZE, DIM)
    with pytest.raises(TypeError, match="bank: expected a tensor"):
        F.bank_update_(queue, torch.zeros(1, dtype=torch.long), torch.ones(1, DIM))
    assert not queue.rows.any()
