"""Batch contrast with scope="global": 2 and 3 gloo processes equal one process with the joined batch."""

from __future__ import annotations

import itertools

import pytest
import torch

from wcord_fast import functional as F
from wcord_fast.distributed import bytes_sent
from wcord_fast.ops import dispatch

from .test_batch_functions import CRITICS, function, problem

SIZES = {2: [5, 2], 3: [3, 1, 6]}  # pairs of the ranks
DIM = 7


def rows_of(sizes, rank):
    ends = [0, *itertools.accumulate(sizes)]
    return slice(ends[rank], ends[rank + 1])


def step(critic, at, sizes, dtypes, excluded, backend, scope):
    """Losses, gradients of x, y, scale and bias, and bytes sent, for the pairs `at` of the joined batch."""
    x, y, labels, index, weight = problem(sum(sizes), DIM)
    x, y = (t.to(dtype)[at].clone().requires_grad_() for t, dtype in zip((x, y), dtypes, strict=True))
    scalars = [torch.tensor(v, requires_grad=True) for v in (8.0, -3.0)]
    ids = {name: {"labels": labels, "index": index}[name][at] for name in excluded}
    more = dict(zip(("scale", "bias"), scalars, strict=True)) if critic == "sigmoid" else {}
    before = bytes_sent()
    losses = function(critic)(x, y, **ids, **more, scope=scope, backend=backend)
    inputs = (x, y, *more.values())
    grads = torch.autograd.grad((losses * weight[at]).sum(), inputs)
    return losses.detach(), grads, bytes_sent() - before


def on_rank(critic, sizes, dtypes, excluded, backend):
    rank = torch.distributed.get_rank()
    return step(critic, rows_of(sizes, rank), sizes, dtypes, excluded, backend, "global")


BACKENDS = [row.backend for row in dispatch.SUPPORT if row.op == "batch" and row.device in ("cpu", "any")]


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.bfloat16, torch.float64)])
@pytest.mark.parametrize("excluded", [(), ("labels",), ("labels", "index")])
@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_ranks_equal_one_process(pool, critic, excluded, dtypes, backend):
    if dispatch.cannot_run(backend, "cpu"):
        pytest.skip(f"no {backend} here")
    sizes = SIZES[pool.world]
    losses, grads, _ = step(critic, slice(None), sizes, dtypes, excluded, backend, "rank")
    actual = pool.run(on_rank, critic, sizes, dtypes, excluded, backend)
    close = dict.fromkeys(("rtol", "atol"), 1e-12 if torch.float64 in dtypes else 3e-5)
    narrow = {"rtol": 1e-2, "atol": 1e-3}
    for rank, (own, (of_x, of_y, *of_scalars), _) in enumerate(actual):
        at = rows_of(sizes, rank)
        torch.testing.assert_close(own, losses[at], **close)
        torch.testing.assert_close(of_x, grads[0][at], **(narrow if of_x.dtype == torch.bfloat16 else close))
        torch.testing.assert_close(of_y, grads[1][at], **close)
        assert len(of_scalars) == 2 * (critic == "sigmoid")
    for i, whole in enumerate(grads[2:]):
        torch.testing.assert_close(sum(of[2 + i] for _, of, _ in actual), whole, rtol=1e-5, atol=1e-5)


def test_ranks_exchange_one_gradient_number_per_pair(pool):
    sizes = [4] * pool.world
    sent = [sent for *_, sent in pool.run(on_rank, "infonce", sizes, (torch.float32,) * 2, (), "auto")]
    others = pool.world - 1
    forward = 8 * others + 4 * 2 * 4 * DIM * others  # sizes; x and y
    assert set(sent) == {forward + 4 * 3 * 4 * others}  # the weight and two totals of each pair


def refused(name):
    x, y, *_ = problem(3, DIM)
    if torch.distributed.get_rank() == 0:
        x[1, 2] = torch.nan
    try:
        F.batch_infonce(x, y, scope="global")
    except ValueError as e:
        return str(e)
    return ""


def test_a_bad_row_is_refused_on_every_rank(pool):
    assert all("x: row 1 holds nan" in message for message in pool.run(refused, "x"))


def test_single_process_equals_one_rank():
    x, y, labels, *_ = problem(6, 5)
    assert torch.equal(F.batch_infonce(x, y, labels=labels, scope="global"), F.batch_infonce(x, y, labels=labels))
