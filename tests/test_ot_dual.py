"""value="dual": its value, its gradients for features and masses, and the debiased divergence built on it."""

import pytest
import torch

from tests import ot_oracles as oracle
from tests.grid import slow
from wcord_fast import functional as F

pytestmark = pytest.mark.usefixtures("each_ot_backend")

COSTS = ["cosine", "sqeuclidean"]
CONVERGED = {"solver": "sinkhorn", "iters": 400}


def problem(seed, n=4, m=3, d=3):
    return (
        oracle.features(seed, n, d),
        oracle.features(seed + 1, m, d),
        oracle.masses(seed + 2, n),
        oracle.masses(seed + 3, m),
    )


def simplex_tangent(n):
    """[n, n-1], orthonormal columns of sum zero."""
    basis = torch.eye(n, n - 1, dtype=torch.float64) - 1 / n
    return torch.linalg.qr(basis - basis.mean(0)).Q


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("iters", [1, 5, 200])
def test_value_is_the_regularised_objective_of_the_plan(cost, iters):
    x, y, a, b = problem(0, 8, 6)
    eps = 0.5
    kwargs = {"a": a, "b": b, "cost": cost, "solver": "sinkhorn", "eps": eps, "iters": iters}
    c = oracle.cost_matrix(x, y, cost)
    plan = oracle.sinkhorn(c, a.numpy(), b.numpy(), eps, iters)
    plan, c = torch.from_numpy(plan), torch.from_numpy(c)
    expected = (plan * c).sum() + eps * (plan * (plan / torch.outer(a, b)).log()).sum()
    torch.testing.assert_close(F.ot_cost(x, y, value="dual", **kwargs), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("cost", COSTS)
def test_gradcheck_of_features_at_convergence(cost):
    x, y, a, b = problem(4)
    eps = 0.3 if cost == "cosine" else 1.5
    x.requires_grad_(), y.requires_grad_()

    def value(x, y):
        return F.ot_cost(x, y, a=a, b=b, cost=cost, eps=eps, value="dual", **CONVERGED)

    assert F.ot_solve(x, y, a=a, b=b, cost=cost, eps=eps, **CONVERGED).marginal_error < 1e-12
    assert torch.autograd.gradcheck(value, (x, y), eps=1e-5, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("cost", COSTS)
def test_gradcheck_of_masses_along_the_simplex(cost):
    x, y, a, b = problem(8)
    eps = 0.3 if cost == "cosine" else 1.5
    za, zb = simplex_tangent(4), simplex_tangent(3)
    ta, tb = (torch.zeros(k, dtype=torch.float64, requires_grad=True) for k in (3, 2))

    def value(ta, tb):
        return F.ot_cost(x, y, a=a + za @ ta, b=b + zb @ tb, cost=cost, eps=eps, value="dual", **CONVERGED)

    assert torch.autograd.gradcheck(value, (ta, tb), eps=1e-5, atol=1e-8, rtol=1e-6)


def test_mass_gradients_are_the_potentials():
    x, y, a, b = problem(12, 6, 5)
    a.requires_grad_(), b.requires_grad_()
    solved = F.ot_solve(x, y, a=a, b=b, eps=0.2, value="dual", solver="sinkhorn", iters=5)
    f, g = torch.autograd.grad(solved.cost, (a, b))
    torch.testing.assert_close(f, 0.2 * (solved.alpha - a.log()), rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(g, 0.2 * (solved.beta - b.log()), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("side", ["a", "b"])
def test_gradient_at_a_zero_mass_is_the_one_sided_derivative(side):
    x, y, a, b = problem(16, 5, 4)
    mass = {"a": a, "b": b}
    mass[side] = oracle.masses(20, len(mass[side]), zeros=[1]).requires_grad_()
    kwargs = {"eps": 0.3, "value": "dual", **CONVERGED}
    grad = torch.autograd.grad(F.ot_cost(x, y, **mass, **kwargs), mass[side])[0]
    assert grad.isfinite().all()
    h = 1e-6
    step = torch.zeros_like(grad)
    step[1], step[0] = h, -h
    with torch.no_grad():
        moved = F.ot_cost(x, y, **{**mass, side: mass[side] + step}, **kwargs) - F.ot_cost(x, y, **mass, **kwargs)
    assert (moved / h).item() == pytest.approx((grad[1] - grad[0]).item(), rel=1e-4)


def test_shared_masses_sum_the_gradients_of_all_problems():
    x, y = oracle.features(22, 3, 5, 2), oracle.features(23, 3, 4, 2)
    a = oracle.masses(24, 5).requires_grad_()
    kwargs = {"solver": "sinkhorn", "value": "dual", "eps": 0.3}
    joint = torch.autograd.grad(F.ot_cost(x, y, a=a, **kwargs).sum(), a)[0]
    single = sum(torch.autograd.grad(F.ot_cost(x[g], y[g], a=a, **kwargs), a)[0] for g in range(3))
    torch.testing.assert_close(joint, single, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("seed", [0, 1, *(slow(n) for n in (2, 3, 4))])
def test_debiased_dual_is_a_divergence(cost, seed):
    x, y, a, b = problem(30 + 4 * seed, 7, 7)
    kwargs = {"cost": cost, "eps": 0.3, "value": "dual", "debias": True, **CONVERGED}
    assert F.ot_cost(x, y, a=a, b=b, **kwargs) > 1e-3
    assert F.ot_cost(x, x, a=a, b=a, **kwargs) == 0
    near = [F.ot_cost(x, x + h * y, a=a, b=a, **kwargs).item() for h in (1e-2, 1e-3)]
    assert 0 < near[1] < 0.05 * near[0]


@pytest.mark.parametrize("value", ["cost", "dual"])
def test_debias_is_the_difference_of_three_solves(value):
    x, y = oracle.features(60, 2, 6, 3).requires_grad_(), oracle.features(61, 2, 5, 3).requires_grad_()
    a, b = oracle.masses(62, 2, 6), oracle.masses(63, 2, 5)
    kwargs = {"solver": "sinkhorn", "eps": 0.2, "value": value}
    debiased = F.ot_solve(x, y, a=a, b=b, debias=True, **kwargs)
    plain = F.ot_solve(x, y, a=a, b=b, **kwargs)
    self_x, self_y = F.ot_cost(x, x, a=a, b=a, **kwargs), F.ot_cost(y, y, a=b, b=b, **kwargs)
    expected = plain.cost - self_x / 2 - self_y / 2
    torch.testing.assert_close(debiased.cost, expected, rtol=1e-12, atol=1e-14)
    assert all(torch.equal(p, q) for p, q in zip(debiased[1:], plain[1:], strict=True))
    grads = [torch.autograd.grad(c.sum(), (x, y)) for c in (debiased.cost, expected)]
    for p, q in zip(*grads, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_debiased_gradient_vanishes_where_the_batches_agree():
    x = oracle.features(64, 6, 3).requires_grad_()
    y = x.detach().clone()
    kwargs = {"eps": 0.3, "value": "dual", "solver": "sinkhorn", "iters": 1000}
    (biased,) = torch.autograd.grad(F.ot_cost(x, y, **kwargs), x)
    (grad,) = torch.autograd.grad(F.ot_cost(x, y, debias=True, **kwargs), x)
    assert grad.abs().max() < 1e-9 < 1e-3 < biased.abs().max()
