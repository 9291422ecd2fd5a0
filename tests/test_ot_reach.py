"""Relaxed marginals (`reach`) and the Euclidean cost: optimality in float64, POT, limits, gradients."""

import math

import pytest
import torch

import wcord_fast.functional as F
from tests import ot_oracles

BACKENDS = ("native", "reference")
COSTS = ("cosine", "sqeuclidean", "euclidean")


def problem(n=9, m=12, mass=1.3):
    x, y = ot_oracles.features(0, n, 3), ot_oracles.features(1, m, 3)
    return x, y, mass * ot_oracles.masses(2, n), ot_oracles.masses(3, m)


def kl(p, q):
    return (torch.special.xlogy(p, p / q) - p + q).sum()


def objective(plan, c, a, b, eps, reach_a, reach_b):
    total = (plan * c).sum() + eps * kl(plan, a[:, None] * b)
    for sums, mass, reach in ((plan.sum(1), a, reach_a), (plan.sum(0), b, reach_b)):
        if reach < math.inf:
            total = total + reach * kl(sums, mass)
    return total


def reference_cost(x, y, cost):
    if cost == "euclidean":
        return ot_oracles.torch_cost(x, y, "sqeuclidean").sqrt()
    return ot_oracles.torch_cost(x, y, cost)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("reach", [0.5, (0.2, 3.0), (0.7, math.inf), (math.inf, 0.7)], ids=str)
def test_the_plan_minimises_the_relaxed_problem(backend, cost, reach):
    """The derivative of the objective vanishes at the plan (along the simplex, where a marginal is met)."""
    x, y, a, b = problem()
    eps, (reach_a, reach_b) = 0.3, reach if isinstance(reach, tuple) else (reach, reach)
    options = {"cost": cost, "solver": "sinkhorn", "eps": eps, "iters": 400, "reach": reach, "backend": backend}
    c = reference_cost(x, y, cost)
    plan = F.ot_plan(x, y, a=a, b=b, **options).requires_grad_()
    value = objective(plan, c, a, b, eps, reach_a, reach_b)
    (slope,) = torch.autograd.grad(value, plan)
    if reach_a == math.inf:
        slope = slope - slope.mean(1, keepdim=True)
        torch.testing.assert_close(plan.detach().sum(1), a)
    if reach_b == math.inf:
        slope = slope - slope.mean(0, keepdim=True)
        torch.testing.assert_close(plan.detach().sum(0), b)
    assert slope.abs().max() < 1e-9
    actual = F.ot_solve(x, y, a=a, b=b, value="dual", **options)
    assert float(actual.cost) == pytest.approx(float(value.detach()), rel=1e-10)
    torch.testing.assert_close(actual.row_mass, plan.detach().sum(1))
    torch.testing.assert_close(actual.column_mass, plan.detach().sum(0))
    assert float(actual.marginal_error) < 1e-9
    assert float(F.ot_cost(x, y, a=a, b=b, **options)) == pytest.approx(float((plan.detach() * c).sum()), rel=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("reach", [None, 0.5, (0.2, math.inf), (math.inf, 0.7)], ids=str)
@pytest.mark.parametrize("iters", [1, 7])
def test_any_number_of_iterations_equals_the_textbook_loop(backend, cost, reach, iters):
    x, y, a, b = problem(mass=1.0)
    both = reach if isinstance(reach, tuple) else (reach or math.inf,) * 2
    c = ot_oracles.cost_matrix(x, y, cost)
    want = ot_oracles.relaxed_sinkhorn(c, a.numpy(), b.numpy(), 0.3, iters, *both)
    options = {"solver": "sinkhorn", "eps": 0.3, "iters": iters, "reach": reach, "backend": backend}
    for plan in (
        F.ot_plan(x, y, a=a, b=b, cost=cost, **options),
        F.ot_plan_from_matrix(torch.from_numpy(c).clamp(min=0), a, b, **options),
    ):
        torch.testing.assert_close(plan, torch.from_numpy(want), rtol=1e-9, atol=1e-13)
    value = F.ot_cost(x, y, a=a, b=b, cost=cost, **options)
    assert float(value) == pytest.approx(float((want * c).sum()), rel=1e-10)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_relaxed_plan_equals_pot(backend):
    pot = pytest.importorskip("ot")
    x, y, a, b = problem()
    c = ot_oracles.torch_cost(x, y, "sqeuclidean")
    expected = pot.unbalanced.sinkhorn_unbalanced(
        a.numpy(), b.numpy(), c.numpy(), 0.5, (1.5, 0.8), reg_type="kl", numItermax=5000, stopThr=1e-14
    )
    actual = F.ot_plan_from_matrix(c, a, b, eps=0.5, reach=(1.5, 0.8), iters=2000, backend=backend)
    torch.testing.assert_close(actual, torch.from_numpy(expected), rtol=1e-8, atol=1e-13)


@pytest.mark.parametrize("reach", [math.inf, (math.inf, math.inf)], ids=str)
def test_an_infinite_reach_is_the_balanced_problem_to_the_bit(reach):
    x, y = problem()[:2]
    c = ot_oracles.torch_cost(x, y, "cosine")
    for call in (
        lambda **o: F.ot_solve(x, y, solver="sinkhorn", **o)[:6],
        lambda **o: F.ot_solve_from_matrix(c, **o)[:6],
    ):
        assert all(torch.equal(p, q) for p, q in zip(call(reach=reach), call(), strict=True))


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("reach", [None, 0.6], ids=str)
def test_gradients_of_the_dual_value(cost, reach):
    x, y, a, b = problem(4, 5, 1.0)
    options = {"cost": cost, "solver": "sinkhorn", "eps": 0.5, "iters": 200, "value": "dual", "reach": reach}

    def value(x, y, a, b):
        a, b = (t / t.sum() if reach is None else t for t in (a, b))
        return F.ot_cost(x, y, a=a, b=b, **options)

    assert torch.autograd.gradcheck(value, [t.requires_grad_() for t in (x, y, a, b)], atol=1e-7)


@pytest.mark.parametrize("problems", [None, 3])
@pytest.mark.parametrize("value", ["cost", "dual"])
@pytest.mark.parametrize(
    "options",
    [{"cost": "euclidean"}, {"cost": "cosine", "reach": (0.4, 2.0)}, {"cost": "euclidean", "reach": 0.3, "eps": 0.01}],
    ids=str,
)
def test_native_code_is_as_exact_as_the_reference(options, value, problems):
    """fp32: errors against float64 are at most 2 times (gradients 3 times) those of plain PyTorch, plus rounding."""
    options = {"solver": "sinkhorn", "eps": 0.1, "iters": 30, "value": value, **options}
    g = () if problems is None else (problems,)
    draw = torch.Generator().manual_seed(3)
    x, y = (torch.randn(*g, n, 5, generator=draw) for n in (21, 34))
    a, b = (torch.rand(*g, n, generator=draw).double().softmax(-1) for n in (21, 34))
    inputs = (x, y, a, b) if value == "dual" else (x, y)

    def solved(dtype, backend):
        leaves = [t.detach().clone().to(dtype).requires_grad_() for t in inputs]
        masses = leaves[2:] or [a.to(dtype), b.to(dtype)]
        cost = F.ot_cost(leaves[0], leaves[1], a=masses[0], b=masses[1], backend=backend, **options)
        cost.sum().backward()
        return cost.detach(), *(t.grad for t in leaves)

    exact, plain = solved(torch.float64, "reference"), solved(torch.float32, "reference")
    for i, (native, other, expected) in enumerate(zip(solved(torch.float32, "native"), plain, exact, strict=True)):
        error, usual = (float((t - expected).norm() / expected.norm()) for t in (native, other))
        assert error <= (3 if i else 2) * usual + 2e-6


def test_the_euclidean_gradient_is_zero_at_coincident_points():
    x = ot_oracles.features(0, 6, 3).requires_grad_()
    F.ot_cost(x, x.detach().clone(), cost="euclidean", solver="sinkhorn", eps=0.01, iters=200).backward()
    assert x.grad.isfinite().all() and x.grad.abs().max() < 1e-6


def test_far_outlier_loses_its_mass():
    x = torch.tensor([[0.0], [1.0], [100.0]], dtype=torch.float64)
    y = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    actual = F.ot_solve(x, y, cost="sqeuclidean", solver="sinkhorn", eps=0.1, iters=500, reach=1.0)
    assert actual.row_mass[2] < 1e-12 and actual.row_mass[:2].min() > 0.3


def test_incompatible_options_are_refused():
    x, y = problem()[:2]
    for other in ({"debias": True}, {"pairs": "diagonal"}):
        for function in (F.ot_cost, F.ot_solve, F.ot_plan):
            with pytest.raises(NotImplementedError, match="reach"):
                function(x, x.clone(), solver="sinkhorn", reach=1.0, **other)
    with pytest.raises(NotImplementedError, match="debias"):
        F.ot_plan(x, x.clone(), debias=True, pairs="diagonal")
    with pytest.raises(ValueError, match="reach"):
        F.ot_cost(x, y, solver="ipot", reach=1.0)
    with pytest.raises(NotImplementedError, match=r"euclidean.*known pairs"):
        F.ot_cost(x, x.clone(), cost="euclidean", pairs="diagonal", backend="native")
    with pytest.raises(ValueError, match="x: row 0 is zero"):
        F.ot_cost(x * 0, y, solver="sinkhorn", reach=1.0, backend="native")
