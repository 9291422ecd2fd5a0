"""The kernels for given costs and relaxed marginals in Triton's interpreter, against the float64 reference.

Not collected by itself: test_ot_triton.py runs it in a process that has TRITON_INTERPRET=1. Memory that torch.empty
gives holds NaN here, so that an element which no kernel wrote shows.
"""

from __future__ import annotations

import pytest
import torch

from tests.ot_rule import assert_rule, solve_args, uniform
from tests.triton_interpret.ot_cases import features, masses, nan_in_fresh_memory  # noqa: F401
from wcord_fast.ops.sinkhorn import matrix_product, matrix_reference, matrix_triton, reference, triton

SHAPES = [(1, 1), (9, 70), (70, 9), (64, 65)]


def options(solver="sinkhorn", eps=0.1, iters=4, tol=None, value="cost", reach=(None, None), error=True):
    dual = value == "dual"
    return reference.SolveOptions("given", solver, eps, iters, tol, value, False, False, dual, dual, *reach, error)


def costs(*shape, seed=0):
    return 1.5 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def assert_equal_to_the_reference(c, a, b, asked):
    """Every result within 1e-5 of the float64 reference, relative to its largest entry; returns ours."""
    ours = matrix_triton.solve(c, a, b, asked)
    exact = matrix_reference.solve(c.double(), a.double(), b.double(), asked)
    assert torch.equal(ours.iterations, exact.iterations)
    assert torch.equal(ours.alpha == -torch.inf, a == 0) and torch.equal(ours.beta == -torch.inf, b == 0)
    for name in ("value", "alpha", "beta", "scale", "marginal_error", "grad_a", "grad_b"):
        have, want = getattr(ours, name).double(), getattr(exact, name)
        assert have.shape == want.shape, name
        finite = want.isfinite()
        assert torch.equal(finite, have.isfinite()), name
        if finite.any():
            largest = float(want[finite].abs().max())
            assert float((have - want)[finite].abs().max()) <= 1e-5 * max(largest, 1), name
    weight = torch.linspace(-1, 2, a.shape[0], device=a.device)
    have = matrix_triton.gradient(c, ours.alpha, ours.beta, ours.scale, weight)
    want = matrix_reference.gradient(c.double(), exact.alpha, exact.beta, exact.scale, weight.double())
    assert have.shape == c.shape
    assert float((have - want).abs().max()) <= 1e-4 * max(float(want.abs().max()), 1e-6)
    return ours


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize(("n", "m"), SHAPES)
def test_accuracy_of_given_costs(own, n, m):
    c = costs(*([3, n, m] if own else [1, n, m]))
    assert_equal_to_the_reference(c, masses(1, 3, n), masses(2, 3, m), options("ipot" if n == 9 else "sinkhorn", 0.2))


@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize("eps", [0.3, 0.005])
@pytest.mark.parametrize("reach", [(None, None), (0.4, 0.4), (0.3, None)], ids=str)
def test_dual_values_zero_masses_and_relaxed_marginals(products, eps, reach, monkeypatch):
    monkeypatch.setattr(matrix_triton, "PRODUCT_CELLS", 0 if products else 1 << 60)
    a, b = masses(3, 3, 9, zeros=[0, 4]), masses(4, 3, 12, zeros=[11])
    if reach != (None, None):
        a, b = 2 * a, b if reach[1] is None else 0.5 * b
    assert_equal_to_the_reference(costs(1, 9, 12), a, b, options(eps=eps, value="dual", reach=reach))


@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize("solver", ["sinkhorn", "ipot"])
def test_tol_stops_each_problem_of_given_costs_on_its_own(products, solver, monkeypatch):
    monkeypatch.setattr(matrix_triton, "PRODUCT_CELLS", 0 if products else 1 << 60)
    a = torch.stack([masses(5, 9), 1e-4 * masses(6, 9)])
    a[1, 0] += 1 - 1e-4
    asked = options(solver, 0.2 if solver == "sinkhorn" else 20.0, 24, tol=1e-4)
    ours = assert_equal_to_the_reference(costs(1, 9, 12), a, masses(7, 2, 12), asked)
    assert (ours.iterations < 24).any()


def test_products_leave_a_problem_out_of_range_to_the_kernels(monkeypatch):
    """The second problem moves its mass over one entry of e^-68; the first one has other ways."""
    monkeypatch.setattr(matrix_triton, "PRODUCT_CELLS", 0)
    c, a, b = costs(1, 9, 12), masses(8, 2, 9), masses(9, 2, 12)
    c[0, 0], c[0, 0, 0] = 0, 3.4
    a[1], b[1] = 1e-36, 1e-36
    a[1, 0], b[1, 0] = 1, 1
    asked = options(eps=0.05, iters=3)
    assert matrix_product.iterate(c[0], a, b, asked).solved.tolist() == [True, False]
    launched = []
    start = triton.Solve.start
    monkeypatch.setattr(
        triton.Solve, "start", lambda run, active: (launched.append(active.tolist()), start(run, active))
    )
    assert_equal_to_the_reference(c, a, b, asked)
    assert launched == [[False, True]]


def test_strips_of_problems_add_up(monkeypatch):
    c, a, b = costs(1, 33, 40), masses(10, 7, 33), masses(11, 7, 40)
    for each in (1, 3, 7):
        strips = lambda blocks, tiles, slots, each=each: triton.Strips(triton.cdiv(tiles, each), each)  # noqa: E731
        monkeypatch.setattr(triton, "plan_strips", strips)
        assert_equal_to_the_reference(c, a, b, options(iters=2))


def test_a_bad_problem_raises_and_the_error_is_optional():
    a, b = masses(12, 2, 5), masses(13, 2, 6)
    with pytest.raises(ValueError, match=r"C\[0, 0\]"):
        matrix_triton.solve(-costs(1, 5, 6), a, b, options())
    assert matrix_triton.solve(costs(1, 5, 6), a, b, options(error=False)).marginal_error.shape == (0,)
    assert "float64" in matrix_triton.unsupported(torch.float64)


@pytest.mark.parametrize("cost", ["cosine", "sqeuclidean"])
@pytest.mark.parametrize("reach", [(0.4, 0.4), (0.3, None), (None, 0.7)], ids=str)
def test_relaxed_marginals_of_features(cost, reach):
    x, y = features(14, 2, 9, 4), features(15, 2, 20, 4)
    for value in ("cost", "dual"):
        args = solve_args(cost, "sinkhorn", 0.4, 12, tol=1e-3, value=value)._replace(reach_a=reach[0], reach_b=reach[1])
        assert_rule(triton.ot_solve, x, y, masses(16, 2, 9, zeros=[2]), uniform(y), args)
