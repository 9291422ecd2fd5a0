"""Properties that hold for every problem, searched by hypothesis."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import ot_oracles as oracle
from wcord_fast import functional as F

few = settings(max_examples=25, deadline=None, derandomize=True)
sizes = st.integers(1, 9)
seeds = st.integers(0, 2**31 - 10)
costs = st.sampled_from(["cosine", "sqeuclidean"])
solvers = st.sampled_from(["ipot", "sinkhorn"])
near = {"rtol": 1e-8, "atol": 1e-10}


@few
@given(seeds, sizes, sizes, st.integers(1, 6), costs, st.booleans())
def test_converged_dual_value_is_symmetric(seed, n, m, d, cost, weighted):
    x, y = oracle.features(seed, n, d), oracle.features(seed + 1, m, d)
    a, b = (oracle.masses(seed + 2, n), oracle.masses(seed + 3, m)) if weighted else (None, None)
    kwargs = {"cost": cost, "solver": "sinkhorn", "eps": 3.0, "iters": 200, "value": "dual"}
    torch.testing.assert_close(F.ot_cost(x, y, a=a, b=b, **kwargs), F.ot_cost(y, x, a=b, b=a, **kwargs), **near)
    plan = F.ot_plan(x, y, a=a, b=b, **kwargs)
    torch.testing.assert_close(plan, F.ot_plan(y, x, a=b, b=a, **kwargs).mT, rtol=1e-6, atol=1e-9)


@few
@given(seeds, sizes, sizes, st.integers(1, 6), costs, solvers)
def test_permuting_rows_permutes_everything(seed, n, m, d, cost, solver):
    x, y = oracle.features(seed, n, d), oracle.features(seed + 1, m, d)
    a, b = oracle.masses(seed + 2, n), oracle.masses(seed + 3, m)
    generator = torch.Generator().manual_seed(seed)
    p, q = torch.randperm(n, generator=generator), torch.randperm(m, generator=generator)
    kwargs = {"cost": cost, "solver": solver, "eps": 0.5, "iters": 20}
    solved, gx, gy = oracle.solve_with_grad(x, y, a=a, b=b, **kwargs)
    moved, hx, hy = oracle.solve_with_grad(x[p], y[q], a=a[p], b=b[q], **kwargs)
    for ours, expected in (
        (moved.cost, solved.cost),
        (moved.alpha, solved.alpha[p]),
        (moved.beta, solved.beta[q]),
        (hx, gx[p]),
        (hy, gy[q]),
    ):
        torch.testing.assert_close(ours, expected, **near)


@few
@given(seeds, sizes, sizes, st.integers(2, 6), solvers)
def test_transformations_that_keep_the_cost_keep_the_result(seed, n, m, d, solver):
    x, y = oracle.features(seed, n, d), oracle.features(seed + 1, m, d)
    shift, turn = oracle.features(seed + 2, d), torch.linalg.qr(oracle.features(seed + 3, d, d)).Q
    stretch = oracle.features(seed + 4, n, 1).exp()
    kwargs = {"solver": solver, "eps": 0.5, "iters": 20}
    base = F.ot_cost(x, y, cost="sqeuclidean", **kwargs)
    torch.testing.assert_close(
        F.ot_cost(x @ turn + shift, y @ turn + shift, cost="sqeuclidean", **kwargs), base, **near
    )
    base = F.ot_cost(x, y, cost="cosine", **kwargs)
    torch.testing.assert_close(F.ot_cost((x * stretch) @ turn, y @ turn, cost="cosine", **kwargs), base, **near)
    # On unit rows half the squared distance is the cosine distance.
    unit = [torch.nn.functional.normalize(t, dim=-1) for t in (x, y)]
    half = F.ot_cost(*unit, cost="sqeuclidean", **{**kwargs, "eps": 1.0}) / 2
    torch.testing.assert_close(half, base, **near)


@few
@given(seeds, sizes, sizes, costs, solvers)
def test_plan_equals_exp_of_the_potentials_after_a_common_shift(seed, n, m, cost, solver):
    x, y = oracle.features(seed, n, 3), oracle.features(seed + 1, m, 3)
    kwargs = {"cost": cost, "solver": solver, "eps": 0.7, "iters": 15}
    s, c = F.ot_solve(x, y, **kwargs), oracle.torch_cost(x, y, cost)
    plan = F.ot_plan(x, y, **kwargs)
    for shift in (0.0, 3.0):
        rebuilt = torch.exp((s.alpha + shift)[:, None] + (s.beta - shift) - s.scale * c)
        torch.testing.assert_close(rebuilt, plan, **near)
    torch.testing.assert_close((plan * c).sum(), s.cost, **near)
    torch.testing.assert_close(plan.sum(0), torch.full((m,), 1 / m, dtype=torch.float64), **near)


@few
@given(
    seeds,
    st.integers(2, 6),
    st.sampled_from(["transposed", "strided", "expanded", "offset"]),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    costs,
)
def test_strides_and_dtypes(seed, n, layout, dtype, cost):
    base = oracle.features(seed, 2, n, 4, dtype=dtype)
    if layout == "transposed":
        x = base.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    elif layout == "strided":
        x = base.repeat_interleave(2, -1)[..., ::2]
    elif layout == "expanded":
        x = base[:1].expand(2, -1, -1)
    else:
        x = torch.cat([base[:1], base])[1:]
    y = oracle.features(seed + 1, 2, 3, 4, dtype=dtype)
    before, version = x.clone(), x._version
    solved, gx, _ = oracle.solve_with_grad(x, y, cost=cost)
    expected, hx, _ = oracle.solve_with_grad(before.contiguous(), y, cost=cost)
    assert torch.equal(x, before) and x._version == version
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert solved.cost.dtype == solved.alpha.dtype == wide and gx.dtype == dtype
    torch.testing.assert_close(solved.cost, expected.cost)
    torch.testing.assert_close(gx, hx)


@pytest.mark.parametrize("solver", ["ipot", "sinkhorn"])
def test_bits_repeat(solver):
    x, y = oracle.features(0, 70, 16, dtype=torch.float32), oracle.features(1, 50, 16, dtype=torch.float32)
    first, second = oracle.solve_with_grad(x, y, solver=solver), oracle.solve_with_grad(x, y, solver=solver)
    assert all(torch.equal(p, q) for p, q in zip(first[0], second[0], strict=True))
    assert torch.equal(first[1], second[1]) and torch.equal(first[2], second[2])
