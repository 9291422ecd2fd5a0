"""The streaming Sinkhorn kernels in Triton's interpreter, against the float64 reference.

Not collected by itself: test_ot_triton.py runs it in a process that has TRITON_INTERPRET=1. Memory that torch.empty
gives holds NaN here, so that an element which no kernel wrote shows.
"""

from __future__ import annotations

import pytest
import torch

from tests.ot_rule import assert_rule, distance, solve_args, uniform
from wcord_fast.ops.sinkhorn import reference, triton

COSTS = ("cosine", "sqeuclidean", "euclidean")
SOLVERS = ("sinkhorn", "ipot")


@pytest.fixture(autouse=True)
def nan_in_fresh_memory():
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all() and torch.ones(1).new_empty(2).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def features(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def masses(seed, *shape, zeros=()):
    w = torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) + 0.2
    w[..., list(zeros)] = 0
    return w / w.sum(-1, keepdim=True)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("eps", [0.5, 0.05, 1e-2, 1e-3, 1e-4])
def test_accuracy_at_every_eps(cost, solver, eps):
    x, y = features(0, 1, 19, 4), features(1, 1, 70 if cost == "cosine" else 33, 4)
    args = solve_args(cost, solver, eps, 5)
    assert_rule(triton.ot_solve, x, y, uniform(x), uniform(y), args)


@pytest.mark.parametrize(("solver", "eps", "iters"), [("ipot", 0.5, 50), ("sinkhorn", 0.05, 15), ("sinkhorn", 1e-3, 5)])
def test_accuracy_of_wide_rows(solver, eps, iters):
    x, y = features(2, 1, 60, 128), features(3, 1, 50, 128)
    assert_rule(triton.ot_solve, x, y, uniform(x), uniform(y), solve_args("cosine", solver, eps, iters))


# Rows and columns below, at and above a block; D below, at and above a tile of the products.
SHAPES = [(1, 1, 1), (1, 9, 2), (8, 1, 3), (16, 128, 16), (130, 65, 33), (17, 260, 128), (5, 140, 130), (9, 6, 300)]


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize(("n", "m", "d"), SHAPES)
def test_shapes(cost, n, m, d):
    d = d if cost == "cosine" else min(d, 21)  # no tile depends on it there, and the loop is slow here
    x, y = features(4, 1, n, d), features(5, 1, m, d)
    args = solve_args(cost, "ipot" if d % 2 else "sinkhorn", 1.0 if cost == "cosine" else 0.5 * d, 2)
    assert_rule(triton.ot_solve, x, y, masses(6, 1, n), masses(7, 1, m), args)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_batch_with_masses_of_zero(cost, solver):
    x, y = features(8, 2, 9, 4), features(9, 2, 70, 4)
    a, b = masses(10, 2, 9, zeros=[0, 7, 8]), masses(11, 2, 70, zeros=[*range(64), 69])  # a whole tile of columns
    out = assert_rule(triton.ot_solve, x, y, a, b, solve_args(cost, solver, 0.3, 3))
    assert torch.equal(out.alpha == -torch.inf, a == 0) and torch.equal(out.beta == -torch.inf, b == 0)
    assert (out.grad_x[a == 0] == 0).all() and (out.grad_y[b == 0] == 0).all()


@pytest.mark.parametrize("cost", COSTS)
def test_one_nonzero_mass(cost):
    x, y = features(12, 1, 6, 4), features(13, 1, 9, 4)
    b = torch.zeros(1, 9)
    b[0, 3] = 1
    assert_rule(triton.ot_solve, x, y, uniform(x), b, solve_args(cost, "ipot", 0.5, 3))


@pytest.mark.parametrize("cost", COSTS)
def test_dual_value_and_its_gradients(cost):
    x, y = features(14, 2, 9, 4), features(15, 2, 20, 4)
    a, b = masses(16, 2, 9, zeros=[2]), masses(17, 2, 20, zeros=[0, 19])
    assert_rule(triton.ot_solve, x, y, a, b, solve_args(cost, "sinkhorn", 0.4, 3, value="dual"))


@pytest.mark.parametrize("solver", SOLVERS)
def test_tol_stops_each_problem_on_its_own(solver):
    spread = torch.tensor([0.05, 2.0])
    x = features(18, 2, 12, 3) * spread[:, None, None] + 1
    y = features(19, 2, 11, 3) * spread[:, None, None] + 1
    eps, tol = 0.5 if solver == "ipot" else 0.1, 2e-3
    ours = triton.ot_solve(x, y, uniform(x), uniform(y), solve_args("cosine", solver, eps, 12, tol=tol))
    assert ours.iterations.tolist() == [10, 12]
    assert ours.marginal_error[0] <= tol < ours.marginal_error[1]
    for g, t in enumerate((10, 12)):  # frozen: what a solve of exactly t iterations gives, its own scale included
        alone = (x[g : g + 1], y[g : g + 1], uniform(x)[:1], uniform(y)[:1])
        one = triton.ot_solve(*alone, solve_args("cosine", solver, eps, t))
        for name in ("value", "alpha", "beta", "scale", "marginal_error", "grad_x", "grad_y"):
            torch.testing.assert_close(getattr(ours, name)[g], getattr(one, name)[0], rtol=1e-5, atol=1e-6)


def test_only_what_is_needed_is_returned():
    x, y = features(20, 1, 5, 3), features(21, 1, 4, 3)
    full = triton.ot_solve(x, y, uniform(x), uniform(y), solve_args("cosine", "sinkhorn", 0.2, 2, value="dual"))
    names = ("grad_x", "grad_y", "grad_a", "grad_b")
    for i, name in enumerate(names):
        options = reference.SolveOptions("cosine", "sinkhorn", 0.2, 2, None, "dual", *(j == i for j in range(4)))
        part = triton.ot_solve(x, y, uniform(x), uniform(y), options)
        for other in names:
            expected = getattr(full, other) if other == name else full.value.new_empty(0)
            assert torch.equal(getattr(part, other), expected)
        torch.testing.assert_close(part.value, full.value, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cost", COSTS)
def test_narrow_inputs_are_widened_once(dtype, cost):
    x, y = features(22, 1, 7, 6).to(dtype), features(23, 1, 5, 6).to(dtype)
    args = solve_args(cost, "ipot", 0.5, 3)
    narrow = triton.ot_solve(x, y, uniform(x), uniform(y), args)
    wide = triton.ot_solve(x.float(), y.float(), uniform(x), uniform(y), args)
    assert narrow.grad_x.dtype == torch.float32
    assert all(torch.equal(p, q) for p, q in zip(narrow, wide, strict=True))


def test_strided_and_expanded_inputs():
    x = features(24, 2, 6, 14)[:, ::2, 1::2]
    y = features(25, 5, 7).expand(2, 5, 7)
    a, b = masses(39, 3, 2).mT, masses(40, 5).expand(2, 5)
    a = a / a.sum(-1, keepdim=True)
    args = solve_args("sqeuclidean", "ipot", 2.0, 2)
    packed = triton.ot_solve(*(t.contiguous() for t in (x, y, a, b)), args)
    assert not a.is_contiguous()
    assert all(torch.equal(p, q) for p, q in zip(triton.ot_solve(x, y, a, b, args), packed, strict=True))


@pytest.mark.parametrize("cost", COSTS)
def test_strips_change_rounding_only(cost, monkeypatch):
    x, y = features(26, 1, 20, 3), features(27, 1, 260, 3)
    results = []
    for each in (100, 2, 1):  # column tiles in a strip: one strip, an uneven last one, as many as there are tiles
        strips = lambda blocks, tiles, slots, each=each: triton.Strips(triton.cdiv(tiles, each), each)  # noqa: E731
        monkeypatch.setattr(triton, "plan_strips", strips)
        results.append(triton.ot_solve(x, y, uniform(x), uniform(y), solve_args(cost, "ipot", 0.5, 1)))
    for other in results[1:]:
        for p, q in zip(results[0], other, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_strips_cover_every_tile_and_leave_none_empty():
    for blocks in (1, 3, 32, 157, 5000):
        for tiles in (1, 2, 63, 64, 5000):
            for slots in (1, 132, 1584):
                strips = triton.plan_strips(blocks, tiles, slots)
                assert 1 <= strips.number <= triton.MAX_STRIPS
                assert (strips.number - 1) * strips.tiles < tiles <= strips.number * strips.tiles
                assert strips.number == 1 or strips.number * blocks <= 4 * slots
    assert triton.plan_strips(32, 64, 132) == triton.Strips(4, 16)  # n = m = 4096 on 132 SMs: one round
    assert triton.plan_strips(782, 1563, 132).number == 1  # 100,000 rows fill them alone


@pytest.mark.parametrize("cost", COSTS)
def test_equal_and_duplicate_points(cost):
    x = features(28, 1, 9, 4)
    x[0, 5:] = x[0, 4]
    for y in (x.clone(), torch.ones(1, 7, 4)):  # coincident points; all costs of a row equal
        assert_rule(triton.ot_solve, x, y, uniform(x), uniform(y), solve_args(cost, "sinkhorn", 0.05, 4))
    self_costs = triton.ot_solve(x, x, uniform(x), uniform(x), solve_args(cost, "sinkhorn", 1e-4, 2))
    assert self_costs.value.abs() <= 2e-7  # every point stays: distances of near points do not cancel


def test_the_plan_is_rebuilt_with_the_rounding_of_the_last_column_step():
    """At exponents near 1e5 another order of the sum costs a factor of two in the gradient."""
    ours = loop = 0.0
    for seed in (50, 52, 54):
        x, y = features(seed, 1, 33, 4), features(seed + 1, 1, 40, 4)
        problem = (x, y, uniform(x), uniform(y))
        args = solve_args("sqeuclidean", "sinkhorn", 1e-4, 4)
        exact = reference.ot_solve(*(t.double() for t in problem), args)
        ours += distance(triton.ot_solve(*problem, args).grad_y, exact.grad_y)
        loop += distance(reference.ot_solve(*problem, args).grad_y, exact.grad_y)
    assert ours < 0.65 * loop, (ours, loop)


@pytest.mark.parametrize(("cost", "eps"), [("sqeuclidean", 1e-5), ("euclidean", 1e-3)])
def test_near_points_far_from_the_origin_keep_their_distance(cost, eps):
    x = features(29, 1, 12, 3) * 1e-2 + 1000
    y = x[:, :9] + features(30, 1, 9, 3) * 1e-3
    assert_rule(triton.ot_solve, x, y, uniform(x), uniform(y), solve_args(cost, "sinkhorn", eps, 5))


def test_the_euclidean_gradient_is_a_sum_of_directions():
    """A pair that is near beside the spread of the rest keeps its direction, and one that coincides has none."""
    x = features(41, 1, 8, 3)
    y = x + 1e-5 * features(42, 1, 8, 3)
    y[0, :2] = x[0, :2]
    args = solve_args("euclidean", "sinkhorn", 1e-2, 5)
    ours = triton.ot_solve(x, y, uniform(x), uniform(y), args)
    exact = reference.ot_solve(x.double(), y.double(), uniform(x.double()), uniform(y.double()), args)
    for name in ("grad_x", "grad_y"):
        torch.testing.assert_close(getattr(ours, name).double(), getattr(exact, name), rtol=1e-4, atol=1e-6)
    assert (ours.grad_x[0, :2].norm(dim=-1) < 1e-6).all() and (ours.grad_x[0, 2:].norm(dim=-1) > 0.1).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1e4, 1e30])
def test_cosine_does_not_see_lengths(scale):
    x, y = features(31, 1, 6, 5), features(32, 1, 8, 5)
    args = solve_args("cosine", "ipot", 0.5, 2)
    plain, scaled = (triton.ot_solve(t, y, uniform(x), uniform(y), args) for t in (x, x * scale))
    torch.testing.assert_close(scaled.value, plain.value, rtol=1e-6, atol=0)
    torch.testing.assert_close(scaled.grad_x * scale, plain.grad_x, rtol=1e-4, atol=1e-6)


def test_tf32_only_on_request():
    x, y = features(33, 1, 30, 64), features(34, 1, 40, 64)
    args = solve_args("cosine", "sinkhorn", 0.02, 3)
    exact = reference.ot_solve(*(t.double() for t in (x, y, uniform(x), uniform(y))), args)
    errors = {}
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("highest", "high", "medium"):
            torch.set_float32_matmul_precision(precision)
            grad = triton.ot_solve(x, y, uniform(x), uniform(y), args).grad_x
            errors[precision] = ((grad - exact.grad_x).norm() / exact.grad_x.norm()).item()
    finally:
        torch.set_float32_matmul_precision(before)
    assert errors["highest"] < 3e-6 and 3e-5 < errors["high"] == errors["medium"] < 3e-3, errors


def test_float64_is_refused():
    x, y = features(35, 1, 3, 2).double(), features(36, 1, 3, 2).double()
    with pytest.raises(NotImplementedError, match="float64"):
        triton.ot_solve(x, y, uniform(x), uniform(y), solve_args("cosine", "ipot", 0.5, 1))


def test_bits_repeat():
    x, y = features(37, 1, 40, 4), features(38, 1, 150, 4)
    args = solve_args("cosine", "ipot", 0.5, 2)
    first, second = (triton.ot_solve(x, y, uniform(x), uniform(y), args) for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(first, second, strict=True))
