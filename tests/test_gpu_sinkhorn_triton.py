"""Streaming Sinkhorn in Triton on a GPU: accuracy, graph replay, memory, the bits of two runs."""

from __future__ import annotations

import pytest
import torch

import wcord_fast.functional as F
from tests.ot_rule import assert_rule, solve_args, uniform
from wcord_fast.ops.sinkhorn import reference, triton
from wcord_fast.ops.sinkhorn.pairs import Pairs

pytestmark = pytest.mark.gpu
COSTS = ("cosine", "sqeuclidean", "euclidean")


@pytest.fixture(autouse=True)
def _needs_triton():
    pytest.importorskip("triton")


def features(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).cuda()


def solve(x, y, args):
    return triton.ot_solve(x, y, uniform(x), uniform(y), args)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("solver", ["sinkhorn", "ipot"])
@pytest.mark.parametrize("eps", [0.5, 0.05, 1e-2, 1e-3, 1e-4])
def test_accuracy_at_every_eps(cost, solver, eps):
    x, y = features(0, 1, 300, 128), features(1, 1, 257, 128)
    if cost != "cosine":
        x, y = x / 16, y / 16  # distances near 1
    assert_rule(triton.ot_solve, x, y, uniform(x), uniform(y), solve_args(cost, solver, eps, 50))


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize(
    ("g", "n", "m", "d"),
    [
        (1, 4096, 4096, 128),
        (1, 4096, 1000, 64),
        (3, 1025, 513, 200),
        (1, 100, 4096, 2048),
        (70_000, 2, 3, 5),
        (1, 1, 7, 1),
    ],
)
def test_shapes(cost, g, n, m, d):
    x, y = features(2, g, n, d), features(3, g, m, d)
    args = solve_args(cost, "ipot" if n > m else "sinkhorn", 0.5 if cost == "cosine" else 0.5 * d, 20)
    assert_rule(triton.ot_solve, x, y, uniform(x), uniform(y), args)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize(("g", "n", "m", "kinds"), [(1, 4096, 4096, 4096), (3, 1025, 513, 100), (1, 300, 257, 10)])
def test_known_pairs(cost, g, n, m, kinds):
    x, y = features(2, g, n, 64), features(3, g, m, 64)
    args = solve_args(cost, "ipot" if n > m else "sinkhorn", 0.5 if cost == "cosine" else 32.0, 20)
    rows, columns = (torch.arange(size, device="cuda").expand(g, size) % kinds - 1 for size in (n, m))
    assert_rule(triton.ot_solve, x, y, uniform(x), uniform(y), args, pairs=Pairs(rows, columns, 0.9))


@pytest.mark.parametrize("scale", [1e-3, 1e-5])
def test_near_pairs_of_long_rows_keep_their_distance(scale):
    """Products near 1 over D = 2048, for which the tensor cores' truncated sums would be too coarse."""
    x = features(4, 1, 256, 2048)
    y = x + scale * features(5, 1, 256, 2048)
    assert_rule(triton.ot_solve, x, y, uniform(x), uniform(y), solve_args("cosine", "sinkhorn", 1e-2, 10))


def test_a_long_row_of_columns_keeps_the_gradient():
    x, y = features(6, 1, 64, 32), features(7, 1, 60_000, 32)
    assert_rule(triton.ot_solve, x, y, uniform(x), uniform(y), solve_args("cosine", "sinkhorn", 0.5, 10))


@pytest.mark.parametrize("cost", COSTS)
def test_dual_and_masses_of_zero(cost):
    x, y = features(8, 2, 400, 16), features(9, 2, 700, 16)
    a, b = uniform(x).clone(), uniform(y).clone()
    a[:, :100], b[:, 300:500] = 0, 0
    a, b = a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)
    args = solve_args(cost, "sinkhorn", 0.3 if cost == "cosine" else 10.0, 30, value="dual")
    assert_rule(triton.ot_solve, x, y, a, b, args)


@pytest.mark.parametrize("solver", ["sinkhorn", "ipot"])
def test_tol_stops_each_problem_without_the_host(solver):
    spread = torch.tensor([0.05, 0.3, 1.0, 3.0], device="cuda")[:, None, None]
    x, y = features(10, 4, 90, 3) * spread + 1, features(11, 4, 80, 3) * spread + 1
    args = solve_args("cosine", solver, 0.5 if solver == "ipot" else 0.05, 145, tol=1e-3)
    solve(x, y, args)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours = solve(x, y, args)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = reference.ot_solve(x.double(), y.double(), uniform(x.double()), uniform(y.double()), args)
    assert torch.equal(ours.iterations, expected.iterations) and len(expected.iterations.unique()) >= 3
    torch.testing.assert_close(ours.value.double(), expected.value, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("tol", [None, 1e-3])
def test_graph_replay_gives_the_bits_of_an_eager_call(cost, tol):
    args = solve_args(cost, "ipot", 0.5, 25, tol=tol)
    x, y = features(12, 2, 500, 48), features(13, 2, 333, 48)
    static_x, static_y = torch.zeros_like(x), torch.zeros_like(y)
    static_x.copy_(y[:, torch.arange(500) % 333])
    static_y.copy_(x[:, :333])
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        solve(static_x, static_y, args)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = solve(static_x, static_y, args)
    static_x.copy_(x)
    static_y.copy_(y)
    for _ in range(2):
        graph.replay()
    for actual, expected in zip(captured, solve(x, y, args), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("cost", COSTS)
def test_memory_grows_with_n_not_with_its_square(cost):
    def peak(n):
        x, y = features(14, 1, n, 32), features(15, 1, n, 32)
        args = solve_args(cost, "sinkhorn", 0.5, 2)
        solve(x, y, args)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        solve(x, y, args)
        return torch.cuda.max_memory_allocated() - before

    assert peak(65_536) <= 2.5 * peak(32_768) and peak(65_536) < 65_536**2 * 4 / 50


def test_bits_repeat():
    x, y = features(16, 1, 3000, 128), features(17, 1, 2000, 128)
    args = solve_args("cosine", "ipot", 0.5, 20)
    assert all(torch.equal(p, q) for p, q in zip(solve(x, y, args), solve(x, y, args), strict=True))


def test_another_device_than_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two devices")
    x, y = features(18, 1, 50, 8).to("cuda:1"), features(19, 1, 40, 8).to("cuda:1")
    assert_rule(triton.ot_solve, x, y, uniform(x), uniform(y), solve_args("cosine", "ipot", 0.5, 10))


def given(g, n, m, own=False):
    """A cost, one or one for each of g problems, and masses, on the device."""
    generator = torch.Generator().manual_seed(7)
    c = torch.rand(*([g] if own else []), n, m, generator=generator)
    a, b = (torch.randn(g, k, generator=generator).softmax(-1) for k in (n, m))
    return c.cuda(), a.cuda(), b.cuda()


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("eps", [0.05, 0.005])
@pytest.mark.parametrize("reach", [None, 0.5])
@pytest.mark.parametrize(("g", "n", "m"), [(64, 100, 100), (64, 300, 257)])  # fewer and more than PRODUCT_CELLS
def test_given_costs_equal_float64(own, eps, reach, g, n, m):
    options = {"eps": eps, "iters": 10, "reach": reach, "value": "dual"}
    results = []
    for dtype, options["backend"] in ((torch.float32, "triton"), (torch.float64, "reference")):
        c, a, b = (t.to(dtype).requires_grad_() for t in given(g, n, m, own))
        a_one, b_one = (t / t.sum(-1, keepdim=True) for t in (a, b))
        value = F.ot_cost_from_matrix(c, a_one, b_one, **options)
        value.mean().backward()
        results.append((value.detach(), c.grad, a.grad, b.grad))
    rounding = 6e-8 / eps  # of an exponent
    for have, want in zip(*results, strict=True):
        assert float((have - want).norm()) <= max(1e-4, 8 * rounding) * float(want.norm())


def test_a_graph_replays_a_solve_of_given_costs():
    c, a, b = given(64, 300, 257)
    c.requires_grad_()

    def step():
        value = F.ot_cost_from_matrix(c, a, b, iters=10, backend="triton").mean()
        return value.detach(), *torch.autograd.grad(value, c)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        c.copy_(c.flip(0))
    graph.replay()
    assert all(torch.equal(x, y) for x, y in zip(captured, step(), strict=True))
