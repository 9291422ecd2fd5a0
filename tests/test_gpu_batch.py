"""Contrast of batches and queues on a device: the Triton kernels against float64 there, graphs, bad values, memory."""

from __future__ import annotations

import pytest
import torch

import wcord_fast
from wcord_fast import functional as F
from wcord_fast.ops import triton_module
from wcord_fast.ops.contrast import reference, triton
from wcord_fast.ops.contrast.reference import Contrast

pytestmark = pytest.mark.gpu

CRITICS = ("infonce", "sigmoid")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def runnable():
    if why := triton_module.unavailable_reason("cuda"):
        pytest.skip(why)


def problem(critic, batch, num_rows, dim, dtype=torch.float32):
    """A contrast of a batch with itself where num_rows is 0, else with a queue, and the weights of the losses."""
    g = torch.Generator().manual_seed(batch)
    count = num_rows or batch
    anchors, own = (torch.nn.functional.normalize(torch.randn(batch, dim, generator=g), dim=1) for _ in range(2))
    rows = torch.nn.functional.normalize(torch.randn(num_rows, dim, generator=g), dim=1) if num_rows else own
    label, index = (torch.randint(-1, 50, (count,), generator=g).cuda() for _ in range(2))
    anchors, rows, own = (t.cuda().to(dtype) for t in (anchors, rows, own))
    scalars = 10.0, -4.0 if critic == "sigmoid" else 0.0
    ids = label[:batch], label, index[:batch], index
    own = own if num_rows else rows
    c = Contrast(critic, anchors, own, rows, -1 if num_rows else 0, not num_rows, *scalars, *ids)
    return c, torch.randn(batch, generator=g).cuda()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch, num_rows, dim", [(1000, 0, 128), (70, 0, 300), (130, 5003, 128), (1, 7, 3)])
@pytest.mark.parametrize("critic", CRITICS)
def test_values_and_gradients_equal_float64(critic, batch, num_rows, dim, dtype):
    c, weight = problem(critic, batch, num_rows, dim, dtype)
    exact = c._replace(anchors=c.anchors.double(), positives=c.positives.double(), rows=c.rows.double())
    ours, expected = triton.values(c), reference.values(exact)
    torch.testing.assert_close(ours.value.double(), expected.value, rtol=1e-6, atol=1e-6)
    row_weight = weight if c.both else None
    grads = triton.gradients(c, weight, row_weight, ours.totals, True, True)
    wide = weight.double()
    wanted_grads = reference.gradients(exact, wide, wide if c.both else None, expected.totals, True, True)
    for mine, theirs in zip(grads, wanted_grads, strict=True):
        assert (mine - theirs).norm() <= 1e-5 * (1 + theirs.norm())


@pytest.mark.parametrize("critic", CRITICS)
def test_a_graph_replays_to_equal_bits(critic):
    c, weight = problem(critic, 500, 0, 64)

    def step():
        values = triton.values(c)
        return values.value, *triton.gradients(c, weight, weight, values.totals, True, True)

    eager = step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = step()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(eager, replayed, strict=True))


def test_a_bad_row_makes_all_losses_nan_and_sets_its_bit():
    x = torch.randn(9, 8, device="cuda")
    y = x.clone()
    y[3, 1] = torch.nan
    assert F.batch_infonce(x, y).isnan().all()
    with pytest.raises(ValueError, match="features given to a loss"):
        wcord_fast.check()


def test_nothing_of_size_b_times_b_is_kept():
    x, y = (torch.randn(16384, 64, device="cuda", requires_grad=True) for _ in range(2))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    F.batch_infonce(x, y).mean().backward()
    assert torch.cuda.max_memory_allocated() - before < 200 << 20  # the scores are 1 GB
