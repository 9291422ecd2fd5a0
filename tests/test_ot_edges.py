"""Corners: zero masses, single rows, duplicates, equal costs, tiny eps, extreme feature sizes."""

import pytest
import torch

from tests import ot_oracles as oracle
from wcord_fast import functional as F

pytestmark = pytest.mark.usefixtures("each_ot_backend")

COSTS = ["cosine", "sqeuclidean"]
SOLVERS = ["ipot", "sinkhorn"]
both = pytest.mark.parametrize(("cost", "solver"), [(c, s) for c in COSTS for s in SOLVERS])


def assert_sound(solved, *grads):
    """No NaN anywhere; -inf in the potentials only."""
    for t in (solved.cost, solved.scale, solved.marginal_error, *grads):
        assert t.isfinite().all()
    for t in (solved.alpha, solved.beta):
        assert not t.isnan().any() and not t.isposinf().any()


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_masses_equal_the_smaller_problem(cost, solver, dtype):
    x, y = oracle.features(0, 7, 3, dtype=dtype), oracle.features(1, 6, 3, dtype=dtype)
    a, b = oracle.masses(2, 7, zeros=[0, 4], dtype=dtype), oracle.masses(3, 6, zeros=[5], dtype=dtype)
    rows, columns = a > 0, b > 0
    kwargs = {"cost": cost, "solver": solver, "eps": 0.5, "iters": 25}
    solved, gx, gy = oracle.solve_with_grad(x, y, a=a, b=b, **kwargs)
    small, hx, hy = oracle.solve_with_grad(x[rows], y[columns], a=a[rows], b=b[columns], **kwargs)
    assert_sound(solved, gx, gy)
    rounding = 8 * torch.finfo(dtype).eps * small.alpha.abs().max().item()  # of the exponents
    for ours, expected in (
        (solved.cost, small.cost),
        (solved.alpha[rows], small.alpha),
        (solved.beta[columns], small.beta),
        (gx[rows], hx),
        (gy[columns], hy),
    ):
        torch.testing.assert_close(ours, expected, rtol=0, atol=rounding)
    assert solved.alpha[~rows].isneginf().all() and solved.beta[~columns].isneginf().all()
    assert (gx[~rows] == 0).all() and (gy[~columns] == 0).all()
    plan = F.ot_plan(x, y, a=a, b=b, **kwargs)
    assert (plan[~rows] == 0).all() and (plan[:, ~columns] == 0).all()


@both
def test_single_nonzero_mass_equals_the_closed_form(cost, solver):
    x, y = oracle.features(4, 5, 3), oracle.features(5, 4, 3)
    a, b = torch.eye(5, dtype=torch.float64)[2], oracle.masses(6, 4)
    solved, gx, gy = oracle.solve_with_grad(x, y, a=a, b=b, cost=cost, solver=solver)
    assert_sound(solved, gx, gy)
    expected = (b * torch.from_numpy(oracle.cost_matrix(x[2:3], y, cost))).sum()
    torch.testing.assert_close(solved.cost, expected, rtol=1e-12, atol=0)
    assert (gx[[0, 1, 3, 4]] == 0).all() and (gx[2] != 0).any()


def test_a_zero_feature_row_without_mass_is_legal_under_cosine():
    x, y = oracle.features(7, 4, 3), oracle.features(8, 5, 3)
    x[1], y[3] = 0, 0
    a, b = oracle.masses(9, 4, zeros=[1]), oracle.masses(10, 5, zeros=[3])
    solved, gx, gy = oracle.solve_with_grad(x, y, a=a, b=b, solver="sinkhorn", value="dual")
    assert_sound(solved, gx, gy)
    assert (gx[1] == 0).all() and (gy[3] == 0).all()


@both
@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 1), (1, 6, 3), (6, 1, 3), (5, 4, 1), (3, 3, 2048)])
def test_single_rows_and_any_width(cost, solver, n, m, d):
    x, y = oracle.features(11, n, d), oracle.features(12, m, d)
    eps = 0.5 * oracle.cost_matrix(x, y, cost).max() + 1e-3
    solved, gx, gy = oracle.solve_with_grad(x, y, cost=cost, solver=solver, eps=eps)
    assert_sound(solved, gx, gy)
    uniform = [torch.full((k,), 1 / k, dtype=torch.float64) for k in (n, m)]
    value, _ = oracle.solve(x, y, *uniform, cost, solver, eps, 50)
    assert solved.cost.item() == pytest.approx(value, rel=1e-9, abs=1e-12)
    if min(n, m) == 1:  # only the product plan is possible
        assert solved.marginal_error < 1e-14


@both
def test_identical_batches_duplicates_and_equal_costs(cost, solver):
    x = oracle.features(13, 6, 4, dtype=torch.float32)
    for pair in (
        (x, x.clone()),
        (x[[0, 0, 1, 1]], x[[1, 1, 0, 0]]),
        (x[:1].expand(5, 4), x[:1].expand(3, 4)),
    ):
        assert_sound(*oracle.solve_with_grad(*pair, cost=cost, solver=solver))
    plan = F.ot_plan(x[:1].expand(5, 4), x[1:2].expand(3, 4), cost=cost, solver=solver)
    torch.testing.assert_close(plan, torch.full((5, 3), 1 / 15), rtol=1e-5, atol=0)


@both
@pytest.mark.parametrize("eps", [0.5, 0.1, 0.05, 1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_no_nan_from_large_to_tiny_eps(cost, solver, eps, dtype):
    x, y = oracle.features(14, 24, 8).to(dtype), oracle.features(15, 20, 8).to(dtype)
    solved, gx, gy = oracle.solve_with_grad(x, y, cost=cost, solver=solver, eps=eps)
    assert_sound(solved, gx, gy)
    plan = F.ot_plan(x, y, cost=cost, solver=solver, eps=eps)
    # Rounding of the exponent s * C, which no fp32 log-domain solver escapes, bounds how well columns are met.
    rounding = torch.finfo(plan.dtype).eps * float(solved.scale) * oracle.cost_matrix(x, y, cost).max()
    assert (plan.sum(0) - 1 / 20).abs().sum() < 1e-5 + 4 * rounding


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e20, 1e30])
def test_cosine_cost_is_scale_invariant(size):
    x, y = oracle.features(16, 5, 4, dtype=torch.float32), oracle.features(17, 6, 4, dtype=torch.float32)
    base, gx, _ = oracle.solve_with_grad(x, y)
    solved, hx, _ = oracle.solve_with_grad(x * size, y)
    torch.testing.assert_close(solved.cost, base.cost, rtol=1e-5, atol=0)
    torch.testing.assert_close(hx.double() * size, gx.double(), rtol=1e-4, atol=1e-7)


def test_near_points_keep_their_distance_far_from_the_origin():
    """|x|^2 + |y|^2 - 2<x, y> in fp32 would return noise of either sign here."""
    y = oracle.features(18, 6, 3, dtype=torch.float32) + 1000
    x = y + torch.linspace(0.001, 0.006, 6)[:, None]
    solved, gx, _ = oracle.solve_with_grad(x, y, cost="sqeuclidean", solver="sinkhorn", eps=1e-3)
    expected, hx, _ = oracle.solve_with_grad(x.double(), y.double(), cost="sqeuclidean", solver="sinkhorn", eps=1e-3)
    assert solved.cost.item() == pytest.approx(expected.cost.item(), rel=1e-4)
    torch.testing.assert_close(gx.double(), hx, rtol=1e-3, atol=1e-8)
