"""Against exact optimal transport and against POT."""

import numpy as np
import pytest
import torch

from tests import ot_oracles as oracle
from wcord_fast import functional as F

pot = pytest.importorskip("ot")

COSTS = ["cosine", "sqeuclidean"]
each_backend = pytest.mark.usefixtures("each_ot_backend")


def problem(cost, seed=0, n=14, m=11):
    x, y = oracle.features(seed, n, 5), oracle.features(seed + 1, m, 5)
    a, b = oracle.masses(seed + 2, n), oracle.masses(seed + 3, m)
    return x, y, a, b, oracle.cost_matrix(x, y, cost)


@each_backend
@pytest.mark.parametrize("cost", COSTS)
def test_ipot_reaches_the_exact_cost(cost):
    x, y, a, b, c = problem(cost)
    eps = 0.02 * c.max()
    solved = F.ot_solve(x, y, a=a, b=b, cost=cost, eps=eps, iters=4000)
    assert solved.cost.item() == pytest.approx(pot.emd2(a.numpy(), b.numpy(), c), rel=1e-4)
    assert solved.marginal_error.item() < 1e-3


@each_backend
@pytest.mark.parametrize("cost", COSTS)
def test_ipot_reaches_the_exact_plan_and_its_gradient(cost):
    x, y, a, b, c = problem(cost, seed=40)
    exact = torch.from_numpy(pot.emd(a.numpy(), b.numpy(), c))
    options = {"a": a, "b": b, "cost": cost, "eps": 0.02 * c.max(), "iters": 4000}
    assert (F.ot_plan(x, y, **options) - exact).abs().sum() < 1e-3
    leaves = x.requires_grad_(), y.requires_grad_()
    actual = torch.autograd.grad(F.ot_cost(*leaves, **options), leaves)
    expected = torch.autograd.grad((exact * oracle.torch_cost(*leaves, cost)).sum(), leaves)
    for g, w in zip(actual, expected, strict=True):
        assert (g - w).abs().max() < 1e-3 * w.abs().max()


@pytest.mark.parametrize("cost", COSTS)
def test_sinkhorn_tends_to_the_exact_cost(cost):
    x, y, a, b, c = problem(cost, seed=10)
    exact = pot.emd2(a.numpy(), b.numpy(), c)
    gaps = []
    for eps in (0.1, 0.01, 0.001):
        solved = F.ot_solve(x, y, a=a, b=b, cost=cost, solver="sinkhorn", eps=eps * c.max(), iters=30000, tol=1e-6)
        assert solved.marginal_error.item() < 1e-3
        gaps.append(solved.cost.item() - exact)
    assert gaps[0] > gaps[1] > gaps[2] > -1e-5 * exact
    assert gaps[2] < 2e-3 * exact


@each_backend
@pytest.mark.parametrize("cost", COSTS)
def test_sinkhorn_equals_pot(cost):
    x, y, a, b, c = problem(cost, seed=20)
    eps = 0.1 * c.max()
    expected = pot.sinkhorn(a.numpy(), b.numpy(), c, reg=eps, numItermax=5000, stopThr=1e-13)
    ours = F.ot_plan(x, y, a=a, b=b, cost=cost, solver="sinkhorn", eps=eps, iters=5000)
    np.testing.assert_allclose(ours, expected, rtol=1e-8, atol=1e-12)


@each_backend
@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("iters", [1, 20])
def test_sinkhorn_equals_pot_before_convergence_at_small_eps(cost, iters):
    x, y, a, b, c = problem(cost, seed=30)
    eps = 0.003 * c.max()
    options = {"reg": eps, "numItermax": iters, "stopThr": 0.0, "warn": False}
    # POT's loop does columns first: the transposed problem is ours.
    expected = pot.bregman.sinkhorn_log(b.numpy(), a.numpy(), c.T.copy(), **options).T
    ours = F.ot_plan(x, y, a=a, b=b, cost=cost, solver="sinkhorn", eps=eps, iters=iters)
    np.testing.assert_allclose(ours, expected, rtol=1e-8, atol=1e-12)


def test_converged_marginals_in_float32():
    x, y = oracle.features(30, 64, 16, dtype=torch.float32), oracle.features(31, 48, 16, dtype=torch.float32)
    for solver in ("ipot", "sinkhorn"):
        plan = F.ot_plan(x, y, solver=solver, iters=400)
        assert (plan.sum(-1) - 1 / 64).abs().sum() < 1e-3
        assert (plan.sum(-2) - 1 / 48).abs().sum() < 1e-5
