"""ot_cost, ot_plan and ot_solve against textbook float64 iterations."""

import numpy as np
import pytest
import torch

from tests import ot_oracles as oracle
from wcord_fast import functional as F

pytestmark = pytest.mark.usefixtures("each_ot_backend")

EPS = {"ipot": 0.5, "sinkhorn": 0.05}
CASES = [(cost, solver) for cost in ("cosine", "sqeuclidean") for solver in ("ipot", "sinkhorn")]
near = {"rtol": 1e-10, "atol": 1e-12}


def eps_for(cost, solver):
    return EPS[solver] * (4 if cost == "sqeuclidean" else 1)  # keep the oracle's K above underflow


@pytest.mark.parametrize(("cost", "solver"), CASES)
@pytest.mark.parametrize("iters", [1, 2, 3, 50])
@pytest.mark.parametrize("weighted", [False, True])
def test_float64_equals_the_textbook_iteration(cost, solver, iters, weighted):
    x, y, eps = oracle.features(0, 9, 4), oracle.features(1, 6, 4), eps_for(cost, solver)
    a = oracle.masses(2, 9) if weighted else torch.full((9,), 1 / 9, dtype=torch.float64)
    b = oracle.masses(3, 6) if weighted else torch.full((6,), 1 / 6, dtype=torch.float64)
    value, plan = oracle.solve(x, y, a, b, cost, solver, eps, iters)
    kwargs = {
        "cost": cost,
        "solver": solver,
        "eps": eps,
        "iters": iters,
        **({"a": a, "b": b} if weighted else {}),
    }

    assert F.ot_cost(x, y, **kwargs).item() == pytest.approx(value, rel=1e-10)
    np.testing.assert_allclose(F.ot_plan(x, y, **kwargs), plan, **near)
    solved = F.ot_solve(x, y, **kwargs)
    assert solved.scale.item() == pytest.approx((iters if solver == "ipot" else 1) / eps, rel=1e-15)
    assert solved.iterations.item() == iters
    assert solved.marginal_error.item() == pytest.approx(np.abs(plan.sum(1) - a.numpy()).sum(), rel=1e-8, abs=1e-13)


@pytest.mark.parametrize(("cost", "solver"), CASES)
def test_potentials_rebuild_the_plan(cost, solver):
    x, y = oracle.features(4, 5, 3), oracle.features(5, 7, 3)
    s = F.ot_solve(x, y, cost=cost, solver=solver, eps=eps_for(cost, solver))
    plan = torch.exp(s.alpha[:, None] + s.beta - s.scale * torch.from_numpy(oracle.cost_matrix(x, y, cost)))
    torch.testing.assert_close(plan, F.ot_plan(x, y, cost=cost, solver=solver, eps=eps_for(cost, solver)), **near)
    torch.testing.assert_close(plan.sum(0), torch.full((7,), 1 / 7, dtype=torch.float64), **near)


@pytest.mark.parametrize(("cost", "solver"), CASES)
def test_a_batch_equals_its_problems(cost, solver):
    x, y = oracle.features(6, 3, 8, 4), oracle.features(7, 3, 5, 4)
    a, b, eps = oracle.masses(8, 3, 8, zeros=[2]), oracle.masses(9, 5), eps_for(cost, solver)
    kwargs = {"cost": cost, "solver": solver, "eps": eps, "b": b}
    batch = F.ot_solve(x, y, a=a, **kwargs)
    plans = F.ot_plan(x, y, a=a, **kwargs)
    assert batch.cost.shape == batch.scale.shape == batch.marginal_error.shape == batch.iterations.shape == (3,)
    assert batch.alpha.shape == (3, 8) and batch.beta.shape == (3, 5) and plans.shape == (3, 8, 5)
    for g in range(3):
        one = F.ot_solve(x[g], y[g], a=a[g], **kwargs)
        for ours, theirs in zip(batch[:6], one[:6], strict=True):
            torch.testing.assert_close(ours[g], theirs, **near)
        value, plan = oracle.solve(x[g], y[g], a[g], b, cost, solver, eps, 50)
        assert batch.cost[g].item() == pytest.approx(value, rel=1e-10)
        np.testing.assert_allclose(plans[g], plan, **near)


def test_default_options_are_the_papers():
    x, y = oracle.features(10, 6, 4), oracle.features(11, 6, 4)
    assert F.ot_cost(x, y).item() == F.ot_cost(x, y, cost="cosine", solver="ipot", eps=0.5, iters=50).item()
    assert F.ot_cost(x, y, solver="sinkhorn").item() == F.ot_cost(x, y, solver="sinkhorn", eps=0.05).item()


@pytest.mark.parametrize(("solver", "eps"), [("ipot", 0.5), ("sinkhorn", 0.05), ("sinkhorn", 0.01)])
@pytest.mark.parametrize("n", [32, 200])
def test_float32_error_against_float64(solver, eps, n):
    x, y = oracle.features(12, n, 64).requires_grad_(), oracle.features(13, n, 64).requires_grad_()
    x32, y32 = (t.detach().float().requires_grad_() for t in (x, y))
    exact, ours = (F.ot_solve(*xy, solver=solver, eps=eps) for xy in ((x, y), (x32, y32)))
    exact.cost.backward()
    ours.cost.backward()
    assert ours.cost.dtype == ours.alpha.dtype == ours.scale.dtype == torch.float32
    assert ours.cost.item() == pytest.approx(exact.cost.item(), rel=1e-5)
    size = exact.alpha.abs().max()
    assert (ours.alpha - exact.alpha).abs().max() <= 1e-4 * size
    assert (ours.beta - exact.beta).abs().max() <= 1e-4 * size
    for grad, expected in ((x32.grad, x.grad), (y32.grad, y.grad)):
        assert (grad - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("eps", [1e-3, 1e-4])
def test_small_eps_equals_the_log_domain_oracle(eps):
    x, y = oracle.features(14, 12, 3), oracle.features(15, 10, 3)
    a, b = np.full(12, 1 / 12), np.full(10, 1 / 10)
    plan = oracle.sinkhorn_log(oracle.cost_matrix(x, y, "cosine"), a, b, eps, 50)
    np.testing.assert_allclose(F.ot_plan(x, y, solver="sinkhorn", eps=eps), plan, rtol=1e-7, atol=1e-11)
