"""The optimal-transport kernels, thread by thread on the CPU, through their own Python launcher, against float64."""

from __future__ import annotations

import copy
import math
import re
from ctypes import c_uint64, c_void_p

import pytest
import torch

from wcord_fast.ops import status
from wcord_fast.ops.sinkhorn import native_cuda, reference
from wcord_fast.ops.sinkhorn.native_cuda import Plan
from wcord_fast.ops.status import Code

from .cuda_on_cpu import build
from .cuda_on_cpu.module import emulated
from .ot_oracles import features, masses

NAMES = ("sinkhorn", "sinkhorn_resident", "sinkhorn_given", "sinkhorn_plan")
SOURCES = [
    *(build.CSRC / "cuda" / f"{name}.cu" for name in NAMES),
    build.HERE / "sinkhorn_rows.cu",
]
F32, F64 = torch.float32, torch.float64
COSTS = ("cosine", "sqeuclidean", "euclidean")
POTENTIALS, GRADIENTS = ("alpha", "beta"), ("grad_x", "grad_y", "grad_a", "grad_b")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build.compile_library(SOURCES, tmp_path_factory.mktemp("sinkhorn"))


@pytest.fixture
def kernels(library):
    """The library; `native_cuda` launches its kernels."""
    plan = native_cuda.plan
    plan.cache_clear()
    with emulated(library):
        yield library
    plan.cache_clear()  # a real device would give other answers


@pytest.fixture(params=["resident", "cooperative"])
def regime(request, kernels, monkeypatch):
    """Sends every problem to this kernel. A cooperative grid has up to four blocks, of which the last is not full."""
    if request.param == "cooperative":
        monkeypatch.setattr(native_cuda, "plan", lambda device, n, m, *_: strips(n, 4))
    return request.param


def strips(n: int, blocks: int, groups: int = 1) -> Plan:
    rows = -(-n // blocks)
    return Plan("cooperative", groups * -(-n // rows), rows, 8, 0)


class Problem:
    """Gaussian features with masses; `zeros`: rows and columns without mass."""

    def __init__(self, n, m, d, problems=1, zeros=True, seed=0, dtype=F32):
        self.x, self.y = features(seed, problems, n, d, dtype=dtype), features(seed + 1, problems, m, d, dtype=dtype)
        wide = reference.accumulation_dtype(dtype)
        self.a = masses(seed + 2, problems, n, zeros=(n // 2,) if zeros and n > 1 else (), dtype=wide)
        self.b = masses(seed + 3, problems, m, zeros=(0, m - 1) if zeros and m > 2 else (), dtype=wide)

    def solve(
        self, run, *, cost="cosine", solver="ipot", eps=0.5, iters=20, tol=None, value="cost", needs=(1, 1, 1, 1)
    ):
        options = reference.SolveOptions(cost, solver, eps, iters, tol, value, *map(bool, needs))
        return self.call(run, options)

    def call(self, run, options):
        return run(self.x, self.y, self.a, self.b, options)

    def check(self, **options):
        """The kernel against the float64 reference, by the accuracy rule; returns the kernel's result."""
        exact = copy.copy(self)
        exact.x, exact.y, exact.a, exact.b = (t.double() for t in (self.x, self.y, self.a, self.b))
        expected, actual = exact.solve(reference.ot_solve, **options), self.solve(native_cuda.ot_solve, **options)
        plain = self.solve(reference.ot_solve, **options)
        assert torch.equal(actual.iterations, expected.iterations)
        torch.testing.assert_close(actual.scale.double(), expected.scale, rtol=1e-7, atol=0)
        costs = reference.cost_matrix(exact.x, exact.y, options.get("cost", "cosine"))
        least_scale = {"value": float(costs.max()), "alpha": 1.0, "beta": 1.0, "marginal_error": 1.0}
        for name in ("value", *POTENTIALS, "marginal_error", *GRADIENTS):
            g, w, p = getattr(actual, name), getattr(expected, name), getattr(plain, name)
            assert g.shape == w.shape and g.dtype == plain.value.dtype, name
            if w.numel() == 0:
                continue
            assert torch.equal(g == -math.inf, w == -math.inf), name
            finite = w.isfinite()
            g, w, p = g.double()[finite], w[finite], p.double()[finite]
            scale = max(float(w.abs().max()), least_scale.get(name, 0.01))
            floor = 1e-11 if self.x.dtype == F64 else 1e-5 if name == "value" else 1e-4
            times = 3 if name in GRADIENTS else 2
            bound = max(floor * scale, times * float((p - w).abs().max()))
            error = float((g - w).abs().max())
            assert error <= bound, f"{name}: error {error:.2e} above {bound:.2e}"
        return actual


SHAPES = [(24, 20, 9), (7, 40, 3), (40, 7, 20), (1, 1, 1), (1, 13, 4), (13, 1, 5)]


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("solver", ["sinkhorn", "ipot"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fp64(regime, shape, solver, cost):
    p = Problem(*shape, dtype=F64)
    p.check(cost=cost, solver=solver, eps=0.5 if solver == "ipot" else 0.05, iters=7)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize(
    ("solver", "eps"),
    [("sinkhorn", 0.5), ("sinkhorn", 0.05), ("sinkhorn", 1e-3), ("sinkhorn", 1e-4), ("ipot", 0.5), ("ipot", 0.01)],
)
def test_fp32(regime, solver, eps, cost):
    p = Problem(21, 26, 10)
    actual = p.check(cost=cost, solver=solver, eps=eps, iters=23, value="dual" if solver == "sinkhorn" else "cost")
    if eps >= 0.05:  # the columns meet their marginal
        plan = reference.ot_plan(p.x, p.y, actual.alpha, actual.beta, actual.scale, cost)
        torch.testing.assert_close(plan.sum(-2), p.b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("eps", [0.05, 1e-3])
def test_dual_with_masses_of_zero(regime, eps, dtype):
    actual = Problem(11, 14, 5, dtype=dtype).check(solver="sinkhorn", eps=eps, value="dual", iters=12)
    assert actual.grad_a.isfinite().all() and actual.grad_b.isfinite().all()


@pytest.mark.parametrize("m", [65, 300, 1100])
def test_wide_rows_take_several_groups_of_columns(regime, m):
    Problem(9, m, 3, seed=5).check(iters=4)
    Problem(5, m, 3, seed=5, dtype=F64).check(solver="sinkhorn", eps=0.01, iters=3)


@pytest.mark.parametrize("dim", [2, 130, 300, 600])
@pytest.mark.parametrize("cost", COSTS)
def test_dimensions(regime, cost, dim):
    Problem(19, 5, dim, seed=7).check(cost=cost, eps=5.0, iters=2)


@pytest.mark.parametrize("dtype", [F32, F64])
def test_the_euclidean_gradient_is_zero_at_coincident_points(regime, dtype):
    """And keeps the direction of a pair that is near beside the spread of the rest."""
    p = Problem(8, 8, 3, zeros=False, dtype=dtype)
    p.y = p.x + (1e-5 if dtype == F32 else 1e-3) * p.y  # of nearer ones the reference in fp64 loses more itself
    p.y[0, :2] = p.x[0, :2]
    actual = p.check(cost="euclidean", solver="sinkhorn", eps=0.01, iters=10, value="dual")
    lengths = actual.grad_x[0].norm(dim=-1)
    assert (lengths[:2] < 1e-6).all() and (lengths[2:] > 0.05).all()


@pytest.mark.parametrize("solver", ["sinkhorn", "ipot"])
def test_masses_of_every_size(regime, solver):
    """Ratios that the integer totals cannot hold, and factors that would lose exponentials, are computed anew."""
    p = Problem(12, 15, 4, zeros=False, dtype=F64)
    p.a[0, :6] *= 10.0 ** -torch.arange(3, 33, 5)
    p.b[0, :7] *= 10.0 ** -torch.arange(2, 37, 5)
    p.a, p.b = p.a / p.a.sum(), p.b / p.b.sum()
    p.check(solver=solver, eps=0.02, iters=6)
    p.x, p.y, p.a, p.b = (t.float() for t in (p.x, p.y, p.a, p.b))
    p.check(solver=solver, eps=0.02, iters=6)


def test_column_whose_first_sum_underflows(regime):
    """x all near y_0: at eps 1e-4 no exponential of the first sweep reaches column 1, and its sum is made anew."""
    p = Problem(6, 2, 2, zeros=False)
    p.y[0] = torch.tensor([[1.0, 0.0], [-1.0, 0.1]])
    p.x[0] = torch.tensor([1.0, 0.0]) + 1e-3 * p.x[0]
    for dtype in (F64, F32):
        p.x, p.y, p.a, p.b = (t.to(dtype) for t in (p.x, p.y, p.a, p.b))
        p.check(solver="sinkhorn", eps=1e-4, iters=11)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("dtype", [F32, F64])
def test_first_iteration_recomputed_in_the_log_domain_may_be_the_last(regime, dtype, cost):
    """The cheapest column of a row has no mass, and columns receive nothing: the plan is then made of the sums anew."""
    eps = 1e-4 if cost == "cosine" else 2e-3
    Problem(21, 26, 10, dtype=dtype).check(cost=cost, solver="sinkhorn", eps=eps, iters=1)


def test_every_problem_stops_when_it_has_converged(regime):
    p = Problem(9, 8, 6, problems=4, seed=3)
    p.y[1] = p.x[1, :8]
    p.x[2], p.y[2] = 1.0, 1.0  # all costs equal: one iteration is enough
    actual = p.check(solver="sinkhorn", eps=0.2, iters=35, tol=1e-4)
    assert actual.iterations.tolist()[2] == 10 and len(set(actual.iterations.tolist())) >= 3
    actual = p.check(solver="ipot", eps=0.5, iters=12, tol=1e-9)  # never reached: all iterations, error reported
    assert (actual.iterations[[0, 1, 3]] == 12).all() and (actual.marginal_error[[0, 1, 3]] > 1e-9).all()


@pytest.mark.parametrize("problems", [1, 5])
def test_more_problems_than_blocks(kernels, monkeypatch, problems):
    monkeypatch.setattr(native_cuda, "plan", lambda device, n, *_: Plan("resident", 2, n, 8, 0))
    Problem(6, 9, 3, problems=problems).check(cost="sqeuclidean", iters=6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_inputs_are_computed_in_fp32(regime, dtype):
    Problem(8, 9, 5, problems=2, dtype=dtype).check(iters=5)


def test_lengths_that_do_not_fit_when_squared(regime):
    p = Problem(6, 7, 3, zeros=False)
    p.x[0, 0] *= 1e30
    p.y[0, 1] *= 1e-30
    p.y[0, 2] *= 1e-37
    actual, expected = (p.solve(run, iters=5) for run in (native_cuda.ot_solve, reference.ot_solve))
    for name in ("value", "alpha", "beta", "grad_x"):
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(actual.grad_y / expected.grad_y, torch.ones(1, 7, 3), rtol=1e-3, atol=0)


def test_uniform_masses_without_a_batch_dimension(regime):
    p = Problem(7, 6, 4, zeros=False)
    p.a, p.b = torch.full((1, 7), 1 / 7), torch.full((1, 6), 1 / 6)
    expected = p.solve(native_cuda.ot_solve)
    p.x, p.y, p.a, p.b = p.x[0], p.y[0], None, None
    for w, g in zip(expected, p.solve(native_cuda.ot_solve), strict=True):
        assert torch.equal(w[0] if w.numel() else w, g)
    p.x, p.y = p.x.repeat_interleave(2, 1)[:, ::2], p.y.t().contiguous().t()  # strided
    for w, g in zip(expected, p.solve(native_cuda.ot_solve), strict=True):
        assert torch.equal(w[0] if w.numel() else w, g)


@pytest.mark.parametrize("needs", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 1), (0, 0, 0, 0)])
def test_only_requested_gradients_are_computed(regime, needs):
    p = Problem(6, 7, 3)
    options = {"solver": "sinkhorn", "eps": 0.1, "value": "dual", "iters": 4}
    every, some = p.solve(native_cuda.ot_solve, **options), p.solve(native_cuda.ot_solve, needs=needs, **options)
    for field in range(6):
        assert torch.equal(every[field], some[field])
    for field, needed in zip(range(6, 10), needs, strict=True):
        assert torch.equal(some[field], every[field]) if needed else some[field].shape == (0,)


@pytest.mark.parametrize("dtype", [F32, F64])
def test_bits_do_not_depend_on_the_order_of_threads(regime, library, dtype):
    p = Problem(14, 70, 6, problems=2, dtype=dtype)
    runs = []
    for seed in (1, 2, 3):
        library.cuda_on_cpu_seed(c_uint64(seed))
        runs.append(p.solve(native_cuda.ot_solve, solver="sinkhorn", eps=1e-3, value="dual", iters=12, tol=1e-30))
    for other in runs[1:]:
        assert all(torch.equal(u, v) for u, v in zip(runs[0], other, strict=True))


@pytest.mark.parametrize(("columns", "groups"), [(5, 1), (300, 2), (600, 3)])
def test_a_lane_without_a_row_holds_no_other_rows_state(library, columns, groups):
    """A warp writes its rows' state while others start their sweep: reading it there would be a data race."""
    rows, lanes_per_row = 6, 8
    state = torch.full((2, 512), math.nan)
    assert library.sinkhorn_rows(c_void_p(state.data_ptr()), rows, columns) == 512
    expected = torch.tensor([[0.0], [-math.inf]]).repeat(1, 512)  # of lanes without a row
    for thread in range(512):
        row_group, lane = thread // 32 // groups, thread % 32
        row = 4 * row_group + lane // lanes_per_row
        if row < rows:
            expected[:, thread] = torch.tensor([100.0 + row, 200.0 + row])
    assert torch.equal(state, expected)


def test_a_strip_of_one_row_each(kernels, monkeypatch):
    monkeypatch.setattr(native_cuda, "plan", lambda device, n, *_: strips(n, n))
    Problem(13, 11, 4, problems=2).check(solver="sinkhorn", eps=0.1, value="dual", iters=11, tol=1e-6)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize(("problems", "groups"), [(5, 2), (4, 4), (7, 3)])
def test_groups_of_blocks_solve_problems_side_by_side(kernels, monkeypatch, problems, groups, dtype):
    """To the bits that one group after another gives, whichever group stops early or meets a bad value."""
    p = Problem(13, 11, 4, problems=problems, dtype=dtype)
    p.y[1, 2] = math.nan
    options = {"solver": "sinkhorn", "eps": 0.1, "value": "dual", "iters": 21, "tol": 1e-3}
    results = []
    for count in (1, groups):
        monkeypatch.setattr(native_cuda, "plan", lambda device, n, *_, count=count: strips(n, 3, count))
        results.append(p.solve(native_cuda.ot_solve, **options))
    for one, several in zip(*results, strict=True):
        assert torch.equal(one.nan_to_num(nan=7.0), several.nan_to_num(nan=7.0))
    assert results[1].value.isnan().tolist() == [g == 1 for g in range(problems)]


BAD = [
    (lambda p: p.x[1].__setitem__((2, 1), math.nan), Code.OT_INPUT),
    (lambda p: p.y[1].__setitem__((0, 0), -math.inf), Code.OT_INPUT),
    (lambda p: p.x[1].__setitem__(0, 0.0), Code.ZERO_ROW),
    (lambda p: p.y[1].__setitem__(3, 0.0), Code.ZERO_ROW),
    (lambda p: p.a[1].__setitem__(1, -p.a[1, 1]), Code.MARGINAL),
    (lambda p: p.b[1].__setitem__(1, math.nan), Code.MARGINAL),
    (lambda p: p.b[1].mul_(1.001), Code.MARGINAL),
]


@pytest.mark.parametrize("which", range(len(BAD)))
def test_a_bad_value_spoils_its_problem_only(regime, which):
    spoil, code = BAD[which]
    p = Problem(6, 7, 3, problems=4, zeros=False)
    options = {"solver": "sinkhorn", "eps": 0.1, "value": "dual", "iters": 5}
    good = p.solve(native_cuda.ot_solve, **options)
    assert int(status.word(p.x.device)) == 0
    spoil(p)
    actual = p.solve(native_cuda.ot_solve, **options)
    assert int(status.word(p.x.device)) == code
    for name in reference.SolveResult._fields:
        g, w = getattr(actual, name), getattr(good, name)
        assert torch.equal(g[[0, 2, 3]], w[[0, 2, 3]]), name
        assert not g.is_floating_point() or g[1].isnan().all(), name


def test_a_zero_row_without_mass_is_no_mistake(regime):
    p = Problem(6, 7, 3)
    p.x[0, 3], p.y[0, 0] = 0.0, 0.0
    p.check(iters=4)
    assert int(status.word(p.x.device)) == 0
    p.x[0, 0] = 0.0
    assert p.solve(native_cuda.ot_solve, cost="sqeuclidean").value.isfinite().all()
    assert int(status.word(p.x.device)) == 0


def test_regime_is_chosen_by_size_and_memory(kernels, monkeypatch):
    """On the emulated device: 8 SMs of 2048 threads and 227 KB."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    plan = native_cuda.plan
    assert plan(0, 64, 64, F32)[:3] == ("resident", 4 * 8, 64)  # four blocks of 512 threads on an SM
    assert plan(0, 64, 64, F32, 500)[:3] == ("resident", 4 * 8, 64)
    assert plan(0, 220, 220, F32, 100)[:3] == ("resident", 8, 220) and plan(0, 150, 150, F64, 16).regime == "resident"
    assert plan(0, 220, 220, F32)[:3] == ("cooperative", 8, 28) and plan(0, 150, 150, F64).regime == "cooperative"
    assert plan(0, 128, 128, F32)[:3] == ("cooperative", 8, 16)  # one problem on all SMs
    assert plan(0, 20, 4096, F32, 2)[:3] == ("cooperative", 6, 7)  # two groups of three blocks
    assert plan(0, 256, 256, F32)[:3] == ("cooperative", 8, 32)
    assert plan(0, 20, 4096, F32)[:3] == ("cooperative", 3, 7)
    assert plan(0, 6, 3000, F64)[:3] == ("cooperative", 3, 2)
    assert plan(0, 20_000, 5, F32)[:3] == ("cooperative", 8, 2500)
    assert plan(0, 2000, 2000, F32).regime == "none" and plan(0, 2**31, 8, F32).regime == "none"
    assert native_cuda.unavailable_reason(64, 64, 128) is None
    for sizes, reason in {
        (2000, 2000, 8): "2000 x 2000 matrix of 16,000,000 bytes fits neither .* of 8 SMs .232,448 bytes",
        (4, 4097, 8): "m = 4097 is above the 4096 columns",
        (4, 4, 2**27 + 1): "D = 134217729",
    }.items():
        assert re.search(reason, native_cuda.unavailable_reason(*sizes)), native_cuda.unavailable_reason(*sizes)
        assert native_cuda.regime(*sizes) == ("none", native_cuda.unavailable_reason(*sizes))
    assert native_cuda.regime(64, 64, 8, F32, 3)[0] == "resident"
    assert native_cuda.regime(256, 256, 8)[0] == "cooperative"
    p = Problem(1, 4097, 1, zeros=False)
    with pytest.raises(NotImplementedError, match="4097"):
        p.solve(native_cuda.ot_solve)
    Problem(26, 300, 2).check(iters=2)  # by the real choice


def test_impossible_launches_are_refused(kernels, monkeypatch):
    p = Problem(12, 6, 2)
    monkeypatch.setattr(native_cuda, "plan", lambda *_: Plan("cooperative", 2, 5, 8, 0))  # two rows are left over
    with pytest.raises(RuntimeError, match="CUDA error 9"):
        p.solve(native_cuda.ot_solve)
