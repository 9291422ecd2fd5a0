"""Transport for a given cost matrix: every backend against textbook float64 loops, gradients, shapes, bad input."""

import numpy as np
import pytest
import torch

import wcord_fast.functional as F
from tests import ot_oracles
from wcord_fast.ops.sinkhorn import matrix, matrix_native, matrix_reference
from wcord_fast.ops.sinkhorn.reference import SolveOptions

BACKENDS = ("native", "reference")
N, M, G = 23, 37, 5


def costs(*shape, seed=0, dtype=torch.float64):
    return torch.from_numpy(np.random.default_rng(seed).uniform(0, 1.5, shape)).to(dtype)


def masses(seed, *shape, zeros=(), dtype=torch.float64):
    return ot_oracles.masses(seed, *shape, zeros=zeros, dtype=dtype)


def textbook(c, a, b, solver, eps, iters):
    """The value and the plan, solved without the rows and columns that have no mass."""
    c, a, b = (np.asarray(t) for t in (c, a, b))
    plan = np.zeros_like(c)
    kept = np.ix_(a > 0, b > 0)
    plan[kept] = ot_oracles.PLANS[solver](c[kept], a[a > 0], b[b > 0], eps, iters)
    return float((plan * c).sum()), torch.from_numpy(plan)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("solver", ["sinkhorn", "ipot"])
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("zeros", [(), (0, 7)], ids=["full", "zeros"])
def test_values_and_plans_equal_the_textbook_iteration(backend, solver, own, zeros):
    c = costs(G, N, M) if own else costs(N, M)
    a, b = masses(1, G, N, zeros=zeros), masses(2, G, M, zeros=zeros)
    options = {"solver": solver, "eps": 0.1 if solver == "sinkhorn" else 0.8, "iters": 30, "backend": backend}
    actual = F.ot_solve_from_matrix(c, a, b, **options)
    plans = F.ot_plan_from_matrix(c, a, b, **options)
    for g in range(G):
        value, plan = textbook(c[g] if own else c, a[g], b[g], solver, options["eps"], 30)
        torch.testing.assert_close(plans[g], plan, rtol=1e-9, atol=1e-13)
        assert float(actual.cost[g]) == pytest.approx(value, rel=1e-10)
        error = float((plan.sum(1) - a[g]).abs().sum())
        assert float(actual.marginal_error[g]) == pytest.approx(error, rel=1e-6, abs=1e-12)
    assert actual.iterations.tolist() == [30] * G


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("a_shape", [None, (N,), (G, N)])
@pytest.mark.parametrize("b_shape", [None, (M,), (G, M)])
@pytest.mark.parametrize("batched", [False, True])
def test_masses_without_a_batch_dimension_are_broadcast(backend, a_shape, b_shape, batched):
    c = costs(G, N, M) if batched else costs(N, M)
    a = None if a_shape is None else masses(1, *a_shape)
    b = None if b_shape is None else masses(2, *b_shape)
    several = batched or any(s is not None and len(s) == 2 for s in (a_shape, b_shape))
    actual = F.ot_cost_from_matrix(c, a, b, eps=0.2, backend=backend)
    assert actual.shape == ((G,) if several else ())
    plan = F.ot_plan_from_matrix(c, a, b, eps=0.2, backend=backend)
    assert plan.shape == ((G, N, M) if several else (N, M))
    torch.testing.assert_close(actual, (plan * c).sum((-2, -1)), rtol=1e-12, atol=0)
    columns = torch.full((M,), 1 / M, dtype=torch.float64) if b is None else b
    torch.testing.assert_close(plan.sum(-2), columns.expand(plan.sum(-2).shape))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("eps", [0.05, 0.005, 0.0005])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_eps_is_solved_in_the_log_domain(backend, eps, dtype):
    """At eps = .005 the kernel leaves fp32, at .0005 fp64."""
    c, sharp = costs(N, M, dtype=dtype), 6 * torch.randn(G, N + M, generator=torch.Generator().manual_seed(3))
    a, b = sharp[:, :N].softmax(-1).to(dtype), sharp[:, N:].softmax(-1).to(dtype)
    a, b = a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)
    c.requires_grad_()
    actual = F.ot_solve_from_matrix(c, a, b, eps=eps, iters=10, backend=backend)
    actual.cost.sum().backward()
    plans = [
        ot_oracles.sinkhorn_log(c.detach().double().numpy(), x.double().numpy(), y.double().numpy(), eps, 10)
        for x, y in zip(a, b, strict=True)
    ]
    value = torch.tensor([float((p * c.detach().double().numpy()).sum()) for p in plans], dtype=torch.float64)
    narrow = dtype == torch.float32
    rounding = 6e-8 * 1.5 / eps if narrow else 1e-12  # of an exponent
    torch.testing.assert_close(
        actual.cost.double(), value.double(), rtol=max(1e-5, 4 * rounding) if narrow else 1e-9, atol=0
    )
    expected = torch.from_numpy(sum(plans))
    assert float((c.grad - expected).norm()) <= (max(1e-4, 4 * rounding) if narrow else 1e-9) * float(expected.norm())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reach", [None, 0.4, (0.3, float("inf"))], ids=str)
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_gradients_of_the_dual_value(backend, reach, own):
    c = costs(2, 4, 5, seed=4) if own else costs(4, 5, seed=4)
    a, b = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)

    def value(c, a, b):
        a = a.softmax(-1) if reach is None else 0.3 + a.sigmoid()
        options = {"value": "dual", "eps": 0.3, "iters": 200, "reach": reach, "backend": backend}
        return F.ot_cost_from_matrix(c, a, b.softmax(-1), **options)

    inputs = [t.requires_grad_() for t in (c, a, b)]
    assert torch.autograd.gradcheck(value, inputs, atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_of_the_cost_matrix_is_the_plan(backend):
    c, a, b = costs(N, M).requires_grad_(), masses(1, G, N), masses(2, G, M)
    weight = torch.arange(1.0, G + 1, dtype=torch.float64)
    (weight * F.ot_cost_from_matrix(c, a, b, backend=backend)).sum().backward()
    plans = F.ot_plan_from_matrix(c, a, b, backend=backend)
    torch.testing.assert_close(c.grad, (weight[:, None, None] * plans).sum(0), rtol=1e-9, atol=1e-14)


def test_zero_masses_have_finite_gradients_that_the_backends_agree_on():
    c = costs(N, M)
    grads = []
    for backend in BACKENDS:
        a = masses(1, G, N, zeros=(3,)).requires_grad_()
        b = masses(2, G, M, zeros=(0, 5)).requires_grad_()
        F.ot_cost_from_matrix(c, a, b, value="dual", iters=200, backend=backend).sum().backward()
        grads.append(torch.cat([a.grad, b.grad], -1))
    assert grads[0].isfinite().all()
    torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-12)


def test_a_problem_does_not_depend_on_its_neighbours_or_on_the_threads():
    c = costs(N, M, dtype=torch.float32)
    a, b = masses(1, 40, N, dtype=torch.float32), masses(2, 40, M, dtype=torch.float32)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            leaf = c.clone().requires_grad_()
            solved = F.ot_solve_from_matrix(leaf, a, b, backend="native")
            solved.cost.sum().backward()
            results.append((*solved[:5], leaf.grad))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))
    few = F.ot_solve_from_matrix(c, a[16:18], b[16:18], backend="native")
    assert torch.equal(few.alpha[1], results[0][1][17]) and torch.equal(few.cost[1], results[0][0][17])
    alone = F.ot_solve_from_matrix(c, a[17], b[17], backend="native")  # by other products
    torch.testing.assert_close(alone.alpha, few.alpha[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(alone.cost, few.cost[1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("solver", ["sinkhorn", "ipot"])
def test_tol_stops_each_problem_on_its_own(backend, solver):
    c, b = costs(N, M), masses(2, 3, M)
    a = torch.stack([masses(1, N), masses(5, N), 1e-3 * masses(7, N)])
    a[2, 0] += 1 - 1e-3
    options = {"solver": solver, "eps": 0.2 if solver == "sinkhorn" else 20.0, "iters": 200, "backend": backend}
    actual = F.ot_solve_from_matrix(c, a, b, tol=1e-6, **options)
    stopped = actual.iterations < 200
    assert len(set(actual.iterations.tolist())) > 1 and stopped.any()
    assert (actual.marginal_error[stopped] <= 1e-6).all()
    for g, count in enumerate(actual.iterations.tolist()):
        alone = F.ot_solve_from_matrix(c, a[g], b[g], **{**options, "iters": count})
        torch.testing.assert_close(actual.alpha[g], alone.alpha)
        torch.testing.assert_close(actual.cost[g], alone.cost)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(dtype):
    c, a, b = costs(N, M, dtype=dtype).requires_grad_(), masses(1, G, N).to(dtype), masses(2, G, M).to(dtype)
    actual = F.ot_cost_from_matrix(c, a, b)
    assert actual.dtype == torch.float32
    actual.sum().backward()
    assert c.grad.dtype == dtype
    wide = [t.detach().float() for t in (a, b)]
    expected = F.ot_cost_from_matrix(c.detach().float(), *(t / t.sum(-1, keepdim=True) for t in wide))
    torch.testing.assert_close(actual.detach(), expected, rtol=1e-5, atol=0)


def test_strides_do_not_matter():
    c, a, b = costs(M, N).T, masses(1, G, N), masses(2, G, M)
    spread = torch.zeros(G, 2 * N, dtype=torch.float64)
    spread[:, ::2] = a
    expected = F.ot_cost_from_matrix(c.contiguous(), a, b)
    assert torch.equal(F.ot_cost_from_matrix(c, spread[:, ::2], b), expected)


def test_expanded_grad_output_and_double_backward():
    c, a, b = costs(N, M).requires_grad_(), masses(1, G, N), masses(2, G, M)
    value = F.ot_cost_from_matrix(c, a, b)
    (grad,) = torch.autograd.grad(value, c, torch.ones(()).double().expand(G), create_graph=True)
    torch.testing.assert_close(grad.detach(), F.ot_plan_from_matrix(c, a, b).sum(0))
    with pytest.raises(NotImplementedError, match="again"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        ({"C": -costs(N, M)}, ValueError, r"C\[0, 0\]"),
        ({"C": costs(N, M).where(costs(N, M) < 1.4, torch.nan)}, ValueError, "C"),
        ({"C": costs(N)}, ValueError, "C"),
        ({"C": [[1.0]]}, TypeError, "C"),
        ({"a": 2 * masses(1, N)}, ValueError, "a"),
        ({"a": masses(1, M)}, ValueError, "a"),
        ({"b": -masses(2, M)}, ValueError, "b"),
        ({"a": masses(1, 2, N), "b": masses(2, 3, M)}, ValueError, "b"),
        ({"reach": 0.0}, ValueError, "reach"),
        ({"reach": -1.0}, ValueError, "reach"),
        ({"reach": (1.0, 2.0, 3.0)}, ValueError, "reach"),
        ({"reach": "far"}, TypeError, "reach"),
        ({"reach": 1.0, "solver": "ipot"}, ValueError, "reach"),
        ({"reach": 1.0, "a": torch.zeros(N).double()}, ValueError, "a"),
        ({"eps": 0.0}, ValueError, "eps"),
        ({"C": 1e300 * costs(N, M), "eps": 1e-9}, ValueError, "C: values up to .* overflow"),
        ({"iters": 0}, ValueError, "iters"),
        ({"backend": "triton"}, NotImplementedError, "triton"),
        ({"a": masses(1, N).requires_grad_()}, NotImplementedError, "a requires grad"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_input_is_named(backend, change, error, named):
    arguments = {"C": costs(N, M), "a": masses(1, N), "b": masses(2, M), "backend": backend, **change}
    with pytest.raises(error, match=named):
        F.ot_cost_from_matrix(**arguments)


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend):
    c, a, b = costs(1, 6, 7, dtype=torch.float32), masses(1, 2, 6).float(), masses(2, 2, 7).float()
    options = ("sinkhorn", 0.1, 12, None, "dual", 0.5, None, True, True, True, backend)
    torch.library.opcheck(matrix.solve_op, (c, a, b, *options))
    solved = matrix.solve_op(c, a, b, *options)
    torch.library.opcheck(matrix.gradient_op, (c, *solved[1:4], torch.ones(2), backend))


@pytest.mark.parametrize("reach", [None, 0.5])
def test_compiled_and_eager_values_are_bit_identical(reach):
    """So are gradients from potentials. Eager calls make those of a shared matrix from scalings where they can."""
    c, a, b = costs(N, M, dtype=torch.float32), masses(1, G, N).float(), masses(2, G, M).float()

    def step(c):
        return F.ot_cost_from_matrix(c, a, b, eps=0.1, reach=reach, value="dual").mean()

    grads = []
    for run in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        leaf = c.clone().requires_grad_()
        value = run(leaf)
        value.backward()
        grads.append((value.detach(), leaf.grad))
    assert torch.equal(grads[0][0], grads[1][0])
    torch.testing.assert_close(grads[0][1], grads[1][1], rtol=1e-5 if reach is None else 0, atol=0)


@pytest.mark.parametrize("iters", [1, 6])
def test_potential_of_a_mass_whose_scaling_is_below_the_normal_numbers(iters):
    a = torch.full((1, N), 1 / (N - 1))
    a[0, 3] = 1e-37  # the first row sums are M: this row's scaling is subnormal
    b = torch.full((1, M), 1 / M)
    options = SolveOptions("given", "sinkhorn", 0.5, iters, None, "cost", False, False, False, False)
    native, exact = (solver.solve(torch.zeros(1, N, M), a, b, options) for solver in (matrix_native, matrix_reference))
    torch.testing.assert_close(native.alpha, exact.alpha, rtol=1e-6, atol=1e-5)
