"""Early stopping: tested every tenth iteration, per problem, and a stopped problem does not move."""

import numpy as np
import pytest
import torch

from tests import ot_oracles as oracle
from wcord_fast import functional as F

pytestmark = pytest.mark.usefixtures("each_ot_backend")


def expected_stop(x, y, solver, eps, tol, iters):
    """First multiple of ten at which the textbook iteration's row error is at most tol, or iters."""
    c = oracle.cost_matrix(x, y, "cosine")
    a, b = np.full(len(x), 1 / len(x)), np.full(len(y), 1 / len(y))
    for t in range(10, iters, 10):
        if np.abs(oracle.PLANS[solver](c, a, b, eps, t).sum(1) - a).sum() <= tol:
            return t
    return iters


@pytest.mark.parametrize(("solver", "eps"), [("ipot", 0.5), ("sinkhorn", 0.05)])
def test_each_problem_stops_at_its_own_iteration(solver, eps):
    scale = torch.tensor([0.05, 0.3, 1.0, 3.0], dtype=torch.float64)  # spread round a common direction: easy to hard
    x = oracle.features(0, 4, 9, 3) * scale[:, None, None] + 1
    y = oracle.features(1, 4, 8, 3) * scale[:, None, None] + 1
    options = {"solver": solver, "eps": eps}
    tol, iters = 1e-3, 145
    expected = [expected_stop(x[g], y[g], solver, eps, tol, iters) for g in range(4)]
    assert len(set(expected)) >= 3, expected
    batch = F.ot_solve(x.requires_grad_(), y, tol=tol, iters=iters, **options)
    assert batch.iterations.tolist() == expected
    (grad,) = torch.autograd.grad(batch.cost.sum(), x)
    plans = F.ot_plan(x, y, tol=tol, iters=iters, **options)
    for g, t in enumerate(expected):  # frozen: equal to a solve of exactly t iterations, its own scale included
        leaf = x[g].detach().requires_grad_()
        one = F.ot_solve(leaf, y[g], iters=t, **options)
        for name in one._fields:
            torch.testing.assert_close(getattr(batch, name)[g], getattr(one, name), rtol=1e-12, atol=1e-13)
        assert batch.scale[g].item() == pytest.approx((t if solver == "ipot" else 1) / eps)
        torch.testing.assert_close(grad[g], torch.autograd.grad(one.cost, leaf)[0], rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(plans[g], F.ot_plan(x[g], y[g], iters=t, **options), rtol=1e-9, atol=1e-13)
        assert t == iters or batch.marginal_error[g] <= tol


@pytest.mark.filterwarnings("ignore:tol = 1e-12 was not reached")
def test_a_tolerance_never_reached_returns_with_the_error():
    x, y = oracle.features(2, 12, 3), oracle.features(3, 12, 3)
    solved = F.ot_solve(x, y, solver="sinkhorn", eps=1e-3, iters=37, tol=1e-12)
    assert solved.iterations == 37 and solved.marginal_error > 1e-3
    plain = F.ot_solve(x, y, solver="sinkhorn", eps=1e-3, iters=37)
    assert all(torch.equal(p, q) for p, q in zip(solved, plain, strict=True))


def test_fewer_than_ten_iterations_are_all_run():
    x, y = oracle.features(4, 5, 3), oracle.features(5, 5, 3)
    assert F.ot_solve(x, y, iters=9, tol=1.0).iterations == 9
    assert F.ot_solve(x, y, iters=50, tol=3.0).iterations == 10
