"""The optimal-transport kernels on a device: both regimes against the float64 reference, without a sync, in graphs."""

from __future__ import annotations

import pytest
import torch

from wcord_fast.ops import status
from wcord_fast.ops.sinkhorn import native_cuda, reference
from wcord_fast.ops.sinkhorn.pairs import Pairs

from .ot_oracles import features, masses

pytestmark = pytest.mark.gpu
SHARED_BYTES, SMS = 227 << 10, 132  # of an H100; the tests below name its regimes


def on(device, pairs):
    return pairs and Pairs(pairs.rows.to(device), pairs.columns.to(device), pairs.rho)


class Problem:
    """Features and masses on the CPU in float64 and on the device."""

    def __init__(self, n, m, d=128, problems=1, dtype=torch.float32, uniform=True, pairs=None):
        x, y = features(1, problems, n, d).to(dtype), features(2, problems, m, d).to(dtype)
        a, b = (masses(3 + k, problems, size, zeros=(0, size // 2)) for k, size in enumerate((n, m)))
        if uniform:
            a, b = (torch.full((problems, size), 1 / size, dtype=torch.float64) for size in (n, m))
        wide = reference.accumulation_dtype(dtype)
        self.pairs = pairs  # on the CPU
        self.exact = x.double(), y.double(), a.to(wide).double(), b.to(wide).double()
        self.on_device = x.cuda(), y.cuda(), a.to(wide).cuda(), b.to(wide).cuda()

    def solve(self, *, cost="cosine", solver="sinkhorn", eps=0.05, iters=50, tol=None, value="cost", run=None):
        options = reference.SolveOptions(cost, solver, eps, iters, tol, value, True, True, True, True)
        if run is None:
            return native_cuda.ot_solve(*self.on_device, options, on(self.on_device[0].device, self.pairs))
        return run(options)

    def check(self, regime, **options):
        (problems, n, d), m = self.exact[0].shape, self.exact[1].shape[1]
        dtype = self.on_device[0].dtype
        chosen, reason = native_cuda.regime(n, m, d, dtype, problems)
        card = native_cuda.plan(torch.cuda.current_device(), n, m, reference.accumulation_dtype(dtype), problems)
        if card.shared < SHARED_BYTES or card.sms < SMS:  # a smaller card uses another regime, or none
            if chosen == "none":
                pytest.skip(reason)
        else:
            assert chosen == regime
        actual = reference.SolveResult(*(t.cpu() for t in self.solve(**options)))
        expected = self.solve(
            run=lambda solve_options: reference.ot_solve(*self.exact, solve_options, self.pairs), **options
        )
        known = on(self.on_device[0].device, self.pairs)
        plain = self.solve(
            run=lambda solve_options: reference.ot_solve(*self.on_device, solve_options, known), **options
        )
        assert torch.equal(actual.iterations, expected.iterations)
        for name in ("value", "alpha", "beta", "marginal_error", "grad_x", "grad_y", "grad_a", "grad_b"):
            g, w, p = getattr(actual, name), getattr(expected, name), getattr(plain, name).cpu()
            finite = w.isfinite()
            assert torch.equal(g.isfinite(), finite), name
            if not w.numel():
                continue
            g, w, p = g.double()[finite], w[finite], p.double()[finite]
            floor = 1e-12 if actual.value.dtype == torch.float64 else 1e-5 if name == "value" else 1e-4
            scale = max(float(w.abs().max()), 1.0 if name in ("alpha", "beta", "marginal_error") else 0.0)
            bound = max(floor * scale, 3 * float((p - w).abs().max()))
            assert float((g - w).abs().max()) <= bound, (name, float((g - w).abs().max()), bound)
        return actual


SHAPES = [(64, 64, "resident"), (200, 220, "cooperative"), (1, 64, "resident"), (256, 256, "cooperative"),
          (1024, 1000, "cooperative"), (300, 3000, "cooperative"), (3000, 40, "cooperative")]  # fmt: skip


@pytest.mark.parametrize(("cost", "eps"), [("cosine", 0.05), ("sqeuclidean", 1.0), ("euclidean", 0.3)])
@pytest.mark.parametrize(("n", "m", "regime"), SHAPES)
def test_shapes(n, m, regime, cost, eps):
    Problem(n, m, 128 if cost == "cosine" else 12).check(regime, cost=cost, eps=eps)


@pytest.mark.parametrize("n", [64, 300])
def test_euclidean_points_that_coincide(n):
    p = Problem(n, n, 16)
    for tensors in (p.exact, p.on_device):
        tensors[1][:, : n // 2] = tensors[0][:, : n // 2]
    p.check("resident" if n == 64 else "cooperative", cost="euclidean", eps=0.05)


@pytest.mark.parametrize(("solver", "eps"), [("ipot", 0.5), ("sinkhorn", 0.05)])
@pytest.mark.parametrize(("n", "m", "regime"), SHAPES)
@pytest.mark.parametrize("kinds", [10, 10**6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_known_pairs(n, m, regime, solver, eps, kinds, dtype):
    rows, columns = (torch.arange(size)[None] % kinds - 1 for size in (n, m))
    if dtype == torch.float64 and n * m > 1 << 20:
        pytest.skip("strips of this matrix in fp64 depend on the card")
    problem = Problem(n, m, 32, dtype=dtype, uniform=False, pairs=Pairs(rows, columns, 0.9))
    problem.check(regime, solver=solver, eps=eps, value="dual" if solver == "sinkhorn" else "cost")


def test_a_batch_that_fills_the_device_is_resident():
    Problem(200, 220, 16, problems=40).check("resident", iters=5)


@pytest.mark.parametrize("n", [64, 256])
@pytest.mark.parametrize(
    ("solver", "eps"), [("ipot", 0.5), ("sinkhorn", 0.5), ("sinkhorn", 1e-2), ("sinkhorn", 1e-3), ("sinkhorn", 1e-4)]
)
def test_solvers_and_eps(n, solver, eps):
    p = Problem(n, n - 5, 64, uniform=False)
    p.check("resident" if n == 64 else "cooperative", solver=solver, eps=eps)


@pytest.mark.parametrize("n", [40, 300])
def test_dual_in_fp64(n):
    p = Problem(n, n + 7, 33, dtype=torch.float64, uniform=False)
    p.check("resident" if n == 40 else "cooperative", value="dual", iters=23)


@pytest.mark.parametrize("n", [48, 300])
def test_batches_stop_problem_by_problem(n):
    p = Problem(n, n, 64, problems=5, dtype=torch.bfloat16)
    p.check("resident" if n == 48 else "cooperative", eps=0.2, tol=1e-3, iters=60)


def test_problems_side_by_side_have_the_bits_of_each_alone():
    """Several groups of blocks, each with its own barrier, and more problems than groups."""
    p = Problem(300, 280, 16, problems=9)
    together = p.solve(value="dual", tol=1e-3)
    tensors = p.on_device
    for g in range(9):
        p.on_device = [t[g : g + 1] for t in tensors]
        assert all(torch.equal(u[g : g + 1], v) for u, v in zip(together, p.solve(value="dual", tol=1e-3), strict=True))


@pytest.mark.parametrize("n", [64, 512])
def test_bits_repeat(n):
    p = Problem(n, n, problems=3)
    first = p.solve(eps=0.01, value="dual")
    for _ in range(5):
        assert all(torch.equal(u, v) for u, v in zip(first, p.solve(eps=0.01, value="dual"), strict=True))


@pytest.mark.parametrize("n", [64, 512])
def test_no_sync_and_a_graph_replays_on_new_inputs(n):
    p = Problem(n, n, problems=2)
    p.solve()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            solved = p.solve()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for seed in range(3):
        p.on_device[0].copy_(features(10 + seed, *p.on_device[0].shape))
        graph.replay()
        for g, w in zip(solved, p.solve(), strict=True):
            assert torch.equal(g, w)


def test_concurrent_streams_do_not_interfere():
    """Cooperative grids of 32 blocks each, so that several are on the device together."""
    problems = [Problem(128 * 2, 256, 32) for _ in range(4)]
    alone = [p.solve(iters=300) for p in problems]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in problems]
    together = []
    for _ in range(5):
        for p, stream in zip(problems, streams, strict=True):
            with torch.cuda.stream(stream):
                together.append((p, p.solve(iters=300)))
    torch.cuda.synchronize()
    for p, actual in together:
        expected = alone[problems.index(p)]
        assert all(torch.equal(u, v) for u, v in zip(expected, actual, strict=True))


@pytest.mark.parametrize("n", [32, 300])
def test_a_bad_value_is_flagged_and_spoils_its_problem_only(n):
    p = Problem(n, n, 16, problems=3)
    good = p.solve()
    p.on_device[0][1, n - 1, 3] = torch.nan
    actual = p.solve()
    with pytest.raises(ValueError, match="optimal-transport"):
        status.check()
    assert actual.value.isnan().tolist() == [False, True, False] and actual.grad_y[1].isnan().all()
    assert torch.equal(actual.grad_x[[0, 2]], good.grad_x[[0, 2]])


def test_unsupported_size_gives_its_reason():
    assert native_cuda.unavailable_reason(64, 64, 128) is None
    assert "fits neither" in native_cuda.unavailable_reason(20_000, 4000, 128)
