"""Against exact optimal transport and against POT."""

import numpy as np
import pytest
import torch

from tests import ot_oracles as oracle
from wcord_fast import functional as F

pot = pytest.importorskip("ot")


def problem(cost, seed=0, n=14, m=11):
    x, y = oracle.features(seed, n, 5), oracle.features(seed + 1, m, 5)
    a, b = oracle.masses(seed + 2, n), oracle.masses(seed + 3, m)
    return x, y, a, b, oracle.cost_matrix(x, y, cost)


@pytest.mark.parametrize("cost", ["cosine", "sqeuclidean"])
def test_ipot_reaches_the_exact_cost(cost):
    x, y, a, b, c = problem(cost)
    eps = 0.02 * c.max()
    solved = F.ot_solve(x, y, a=a, b=b, cost=cost, eps=eps, iters=4000)
    assert solved.cost.item() == pytest.approx(pot.emd2(a.numpy(), b.numpy(), c), rel=1e-4)
    assert solved.marginal_error.item() < 1e-3


@pytest.mark.parametrize("cost", ["cosine", "sqeuclidean"])
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


def test_sinkhorn_equals_pots():
    x, y, a, b, c = problem("sqeuclidean", seed=20)
    want = pot.sinkhorn(a.numpy(), b.numpy(), c, reg=1.0, numItermax=5000, stopThr=1e-13)
    ours = F.ot_plan(x, y, a=a, b=b, cost="sqeuclidean", solver="sinkhorn", eps=1.0, iters=5000)
    np.testing.assert_allclose(ours, want, rtol=1e-8, atol=1e-12)


def test_converged_marginals_in_float32():
    x, y = oracle.features(30, 64, 16, dtype=torch.float32), oracle.features(31, 48, 16, dtype=torch.float32)
    for solver in ("ipot", "sinkhorn"):
        plan = F.ot_plan(x, y, solver=solver, iters=400)
        assert (plan.sum(-1) - 1 / 64).abs().sum() < 1e-3
        assert (plan.sum(-2) - 1 / 48).abs().sum() < 1e-5
