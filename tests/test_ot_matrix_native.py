"""Given costs in the native CPU code: a matrix each against one for all, and what is kept for the gradient."""

import pytest
import torch

import wcord_fast.functional as F
from tests import ot_oracles
from wcord_fast.ops.sinkhorn import matrix_native, matrix_reference
from wcord_fast.ops.sinkhorn.reference import SolveOptions

G = 3


def problem(n, m, zeros=()):
    generator = torch.Generator().manual_seed(n + m)
    c = 1.4 * torch.rand(n, m, generator=generator)
    a, b = (ot_oracles.masses(s, G, k, zeros=zeros, dtype=torch.float32) for s, k in ((1, n), (2, m)))
    return c, a, b


def value_and_gradient(c, a, b, **options):
    leaf = c.detach().requires_grad_()
    value = F.ot_cost_from_matrix(leaf, a, b, **options)
    (value * torch.arange(1, G + 1)).sum().backward()
    return value.detach().double(), leaf.grad.double()


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 9), (16, 16), (17, 33), (70, 100)])
@pytest.mark.parametrize(
    "options",
    [
        {"eps": 0.05},
        {"eps": 0.004},  # fp64's range
        {"eps": 0.05, "value": "dual"},
        {"eps": 0.05, "reach": 0.5},
        {"eps": 0.2, "tol": 1e-3},
        {"eps": 0.8, "solver": "ipot"},
        {"eps": 5.0, "solver": "ipot", "tol": 1e-2},
    ],
    ids=str,
)
def test_a_matrix_each_and_one_for_all_meet_the_accuracy_rule(n, m, options):
    c, a, b = problem(n, m, zeros=(0,) if n > 16 else ())
    options = {"iters": 20, **options}
    exact = value_and_gradient(c.double(), a.double(), b.double(), backend="reference", **options)
    loop = value_and_gradient(c, a, b, backend="reference", **options)
    own = value_and_gradient(c.repeat(G, 1, 1), a, b, backend="native", **options)
    shared = value_and_gradient(c, a, b, backend="native", **options)
    for value, gradient in ((own[0], own[1].sum(0)), shared):
        error, plain = (value - exact[0]).abs().max(), (loop[0] - exact[0]).abs().max()
        assert error <= max(1e-5 * exact[0].abs().max(), 2 * plain, 1e-7)
        error, plain = (gradient - exact[1]).norm(), (loop[1] - exact[1]).norm()
        assert error <= max(1e-4 * exact[1].norm(), 3 * plain)


def test_a_single_problem_is_solved_like_one_with_a_matrix_of_its_own():
    c, a, b = problem(17, 33)
    each, single = c.repeat(G, 1, 1).requires_grad_(), c.clone().requires_grad_()
    values = F.ot_cost_from_matrix(each, a, b, backend="native")
    values.sum().backward()
    for masses in ((a[1], b[1]), (a[1:2], b[1:2])):
        single.grad = None
        value = F.ot_cost_from_matrix(single, *masses, backend="native").sum()
        value.backward()
        assert torch.equal(value, values[1]) and torch.equal(single.grad, each.grad[1])


def test_a_matrix_each_gives_the_same_bits_with_any_number_of_threads():
    c, a, b = problem(17, 33)
    c, threads = torch.stack([c, 2 * c, 3 * c]), torch.get_num_threads()
    try:
        results = []
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(value_and_gradient(c, a, b, backend="native"))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


def solve_options(**changed):
    fields = {"cost": "given", "solver": "sinkhorn", "eps": 0.05, "iters": 10, "tol": None, "value": "cost"} | changed
    return SolveOptions(**fields, need_x=False, need_y=False, need_a=False, need_b=False)


@pytest.mark.parametrize(
    ("changed", "scaled"),
    [
        ({}, True),
        ({"value": "dual"}, True),
        ({"solver": "ipot", "eps": 0.8}, True),
        ({"eps": 0.004}, False),
        ({"reach_a": 0.5}, False),
    ],
    ids=str,
)
@pytest.mark.parametrize("offset", [0, 7])  # of the costs, whose least one leaves the kernel
def test_kept_scalings_give_the_gradient_and_the_potentials_of_the_solve(changed, scaled, offset):
    c, a, b = problem(17, 33)
    c, options = c + (0 if changed.get("reach_a") else offset), solve_options(**changed)
    value, kept = matrix_native.value(c, a, b, options)
    assert bool(kept[G * (17 + 33 + 1) :].view(torch.int32)[0]) == scaled
    solved = matrix_native.solve(c.unsqueeze(0), a, b, options._replace(need_error=True))
    assert torch.equal(value, solved.value)
    alpha, beta, scale, *_ = matrix_native.parts(kept, G, c, options)
    assert torch.equal(scale, solved.scale)
    torch.testing.assert_close(alpha + beta[:, :17], solved.alpha + solved.beta[:, :17], rtol=1e-6, atol=1e-5)
    weight = torch.tensor([1.0, -2.0, 0.5])
    expected = matrix_reference.gradient(
        c.double().unsqueeze(0), solved.alpha.double(), solved.beta.double(), scale.double(), weight.double()
    )
    actual = matrix_native.gradient_of_kept(c, kept, weight)
    rounding = 6e-8 * float(scale.max() * c.max())
    assert (actual - expected[0]).norm() <= (1e-5 + 2 * rounding) * expected.norm()


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(("n", "m"), [(16, 16), (17, 33)])
@pytest.mark.parametrize("far", [False, True])
def test_fp64_solves_those_problems_alone_whose_sums_leave_the_range_of_fp32(monkeypatch, n, m, own, far):
    c, a, b = problem(n, m)
    if far:  # 65 nats from every row: exp of it is a number of fp32, but the sums of this column are below 2^-90
        c[:, 0] = 65 * 0.05
    monkeypatch.setattr(matrix_reference, "solve", None)  # the native code needs no help
    costs = c.repeat(G, 1, 1) if own else c.unsqueeze(0)
    solved = matrix_native.solve(costs, a, b, solve_options())
    exact = matrix_native.solve(costs.double(), a.double(), b.double(), solve_options())
    assert torch.equal(solved.beta, exact.beta.float()) == far
    torch.testing.assert_close(solved.beta, exact.beta.float(), rtol=1e-5, atol=1e-4)
