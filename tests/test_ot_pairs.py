"""Transport that knows its pairs: a float64 oracle with the reference plan written out, limits, bits and errors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import ot_oracles as oracles
from tests.ot_oracles import features, masses
from wcord_fast import explain
from wcord_fast import functional as F
from wcord_fast.ops import native_module
from wcord_fast.ops.sinkhorn import backends
from wcord_fast.ops.sinkhorn.autograd import ot_solve_op

BACKENDS = ["reference", pytest.param("native", marks=pytest.mark.skipif(native_module.load() is None, reason="none"))]
EPS = {"sinkhorn": 0.05, "ipot": 0.5}


def labels_of(n, m):
    """Rows without a partner, several rows of one column, columns without a row."""
    return torch.arange(n) % max(1, m - 1) - 1, torch.arange(m) - 1


def reference_plan(a, b, labels, rho):
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    known = np.array([[int(g) == int(h) and int(g) >= 0 for h in labels[1]] for g in labels[0]])
    ab = a[:, None] * b
    return rho * ab * known / (ab * known).sum() + (1 - rho) * ab if (ab * known).any() else ab


def oracle(c, a, b, r, solver, eps, iters):
    """The plan by scalings, from the kernel (ipot: the first plan) r / (a b^T)."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    start = r / (a[:, None] * b)
    if solver == "sinkhorn":
        return oracles.sinkhorn(c - eps * np.log(start), a, b, eps, iters)
    kernel, plan, sigma = np.exp(-c / eps), start, np.full(len(b), 1 / len(b))
    for _ in range(iters):
        q = kernel * plan
        delta = a / (q @ sigma)
        sigma = b / (q.T @ delta)
        plan = delta[:, None] * q * sigma
    return plan


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("solver", EPS)
@pytest.mark.parametrize("cost", ["cosine", "sqeuclidean"])
@pytest.mark.parametrize(("n", "m"), [(5, 5), (7, 4), (130, 90)])
def test_value_plan_and_gradient_equal_the_oracle(backend, streaming, solver, cost, n, m, monkeypatch):
    if streaming:
        monkeypatch.setenv("WCORD_FAST_OT_BYTES", "0")
    eps = EPS[solver] * (1 if cost == "cosine" else 20)
    labels, a, b = labels_of(n, m), masses(3, n), masses(4, m)
    for dtype, fraction in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        x, y = features(1, n, 6, dtype=dtype).requires_grad_(), features(2, m, 6, dtype=dtype).requires_grad_()
        c, r = oracles.cost_matrix(x.detach(), y.detach(), cost), reference_plan(a, b, labels, 0.8)
        plan = oracle(c, a, b, r, solver, eps, 25)
        options = {"a": a.to(dtype), "b": b.to(dtype), "cost": cost, "solver": solver, "eps": eps, "iters": 25}
        options |= {"pairs": labels, "rho": 0.8, "backend": backend}
        solved = F.ot_solve(x, y, **options)
        solved.cost.backward()
        assert abs(solved.cost.item() - (plan * c).sum()) <= fraction * max(1, c.max())
        ours = F.ot_plan(x.detach(), y.detach(), **options)
        assert (ours.double() - torch.from_numpy(plan)).abs().max() <= fraction * plan.max()
        wide = [t.detach().double().requires_grad_() for t in (x, y)]
        (torch.from_numpy(plan) * oracles.torch_cost(*wide, cost)).sum().backward()
        for mine, want in zip((x, y), wide, strict=True):
            assert (mine.grad.double() - want.grad).abs().max() <= fraction * want.grad.abs().max()
        if solver == "sinkhorn":
            dual = F.ot_cost(x, y, **options, value="dual").item()
            assert abs(dual - (plan * (c + eps * np.log(plan / r))).sum()) <= 10 * fraction * max(1, c.max())


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_dual_value_s_gradient_is_the_derivative_at_convergence(backend):
    x, y = features(1, 4, 3), features(2, 4, 3)
    options = {"solver": "sinkhorn", "eps": 0.3, "iters": 300, "value": "dual", "pairs": "diagonal", "rho": 0.7}
    for side in (x, y):
        side.requires_grad_()
    torch.autograd.gradcheck(lambda x, y: F.ot_cost(x, y, **options, backend=backend), (x, y), rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("solver", EPS)
@pytest.mark.parametrize("value", ["cost", "dual"])
def test_rho_0_or_no_pair_equals_the_problem_without_pairs_bit_for_bit(backend, solver, value):
    if solver == "ipot" and value == "dual":
        pytest.skip("ipot has no dual value")
    x, y = features(1, 9, 5, dtype=torch.float32), features(2, 12, 5, dtype=torch.float32)
    options = {"solver": solver, "value": value, "backend": backend}
    plain = F.ot_solve(x, y, **options)
    none = (torch.full((9,), -1), torch.full((12,), -1))
    for pairs, rho in (("diagonal", 0.0), (none, 0.9), ((torch.zeros(9).long(), torch.ones(12).long()), 0.9)):
        actual = F.ot_solve(x, y, **options, pairs=pairs, rho=rho)
        assert all(torch.equal(p, q) for p, q in zip(plain, actual, strict=True))
        assert torch.equal(F.ot_plan(x, y, **options), F.ot_plan(x, y, **options, pairs=pairs, rho=rho))


@pytest.mark.parametrize("backend", BACKENDS)
def test_plan_concentrates_on_the_pairs_as_rho_tends_to_1(backend):
    x, y = features(1, 16, 8), features(2, 16, 8)
    mass = []
    for rho in (0.0, 0.5, 0.9, 0.999, 1 - 1e-12):
        plan = F.ot_plan(x, y, solver="sinkhorn", eps=0.2, pairs="diagonal", rho=rho, backend=backend)
        mass.append(plan.diagonal().sum().item())
    assert mass == sorted(mass) and mass[0] < 0.3 and mass[-1] > 1 - 1e-6
    value = F.ot_cost(x, y, solver="sinkhorn", eps=0.2, pairs="diagonal", rho=1 - 1e-12, backend=backend)
    torch.testing.assert_close(value, 1 - torch.cosine_similarity(x, y).mean(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_equals_single_problems_with_their_own_labels(backend):
    x, y = features(1, 3, 6, 4), features(2, 3, 8, 4)
    rows, columns = torch.arange(18).view(3, 6) % 5, torch.arange(24).view(3, 8) % 7 - 1
    a = masses(3, 3, 6, zeros=(2,))
    both = F.ot_solve(x, y, a=a, pairs=(rows, columns), rho=0.9, backend=backend)
    plans = F.ot_plan(x, y, a=a, pairs=(rows, columns), rho=0.9, backend=backend)
    for g in range(3):
        one = {"a": a[g], "pairs": (rows[g], columns[g]), "rho": 0.9, "backend": backend}
        torch.testing.assert_close(both.cost[g], F.ot_cost(x[g], y[g], **one))
        torch.testing.assert_close(plans[g], F.ot_plan(x[g], y[g], **one))
    shared = F.ot_cost(x, y, pairs=(rows[0], columns[0]), backend=backend)
    torch.testing.assert_close(shared[2], F.ot_cost(x[2], y[2], pairs=(rows[0], columns[0]), backend=backend))


@pytest.mark.skipif(native_module.load() is None, reason="no native module")
@pytest.mark.filterwarnings("ignore:tol = ")
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_native_equals_the_reference_over_shapes_labels_and_options(data):
    n, m, d = (data.draw(st.integers(1, 40)) for _ in range(3))
    solver = data.draw(st.sampled_from(sorted(EPS)))
    kinds = data.draw(st.integers(1, 12))
    seed = data.draw(st.integers(0, 10**6))
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (torch.randint(-1, kinds, (size,), generator=generator) for size in (n, m))
    x, y = features(seed, n, d).requires_grad_(), features(seed + 1, m, d).requires_grad_()
    options = {
        "solver": solver,
        "eps": data.draw(st.sampled_from((0.01, 0.05, 0.5))),
        "iters": data.draw(st.sampled_from((1, 9, 30))),
        "tol": data.draw(st.sampled_from((None, 1e-2))),
        "pairs": (rows, columns),
        "rho": data.draw(st.sampled_from((0.1, 0.9, 0.9999))),
    }
    actual = []
    for backend in ("reference", "native"):
        solved = F.ot_solve(x, y, **options, backend=backend)
        actual.append((solved.cost, solved.marginal_error, *torch.autograd.grad(solved.cost, (x, y))))
    for want, ours in zip(*actual, strict=True):
        torch.testing.assert_close(ours, want, rtol=1e-6, atol=1e-9)


@pytest.mark.skipif(native_module.load() is None, reason="no native module")
def test_results_do_not_depend_on_the_number_of_threads():
    x, y = features(1, 300, 16, dtype=torch.float32), features(2, 300, 16, dtype=torch.float32)
    before, actual = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            actual.append(F.ot_cost(x, y, pairs=(torch.arange(300) % 40,) * 2, rho=0.9, backend="native"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*actual)


def test_the_op_passes_opcheck_and_compiles_with_pairs():
    x, y = features(1, 5, 4), features(2, 6, 4)
    labels = (torch.arange(5), torch.arange(6))
    options = ("cosine", "sinkhorn", 0.1, 12, None, "cost", True, True, False, False, "reference", *labels, 0.9)
    torch.library.opcheck(ot_solve_op, (x, y, None, None, *options))
    step = torch.compile(lambda x, y: F.ot_cost(x, y, pairs="diagonal", rho=0.9), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(step(x, y), F.ot_cost(x, y, pairs="diagonal", rho=0.9))


ERRORS = [
    ({"pairs": "rows"}, ValueError, "pairs: expected one of 'diagonal', got 'rows'"),
    ({"pairs": torch.arange(4)}, TypeError, "pairs: expected 'diagonal' or"),
    ({"pairs": (torch.arange(4), torch.arange(4))}, ValueError, r"pairs\[1\]"),
    ({"pairs": (torch.arange(4.0), torch.arange(5))}, TypeError, r"pairs\[0\]"),
    ({"pairs": "diagonal", "rho": 1.0}, ValueError, "rho: expected a number in .0, 1., got 1"),
    ({"pairs": "diagonal", "rho": -0.1}, ValueError, "rho"),
    ({"pairs": "diagonal", "debias": True}, NotImplementedError, "debias"),
    ({"pairs": "diagonal", "a": torch.full((4,), 0.25).requires_grad_()}, NotImplementedError, "known pairs have no"),
]


@pytest.mark.parametrize(("options", "kind", "message"), ERRORS)
def test_unsupported_pairs_options_are_refused(options, kind, message):
    with pytest.raises(kind, match=message):
        F.ot_cost(features(1, 4, 3, dtype=torch.float32), features(2, 5, 3, dtype=torch.float32), **options)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_pairs_do_not_change_the_backend(device):
    for n in (64, 9000):
        with_pairs, without = (explain("ot", n=n, dim=64, device=device, pairs=pairs) for pairs in (True, False))
        assert with_pairs.backend == without.backend


def test_pairs_beside_another_rare_option_are_left_to_other_backends(monkeypatch):
    sizes = 8, 8, 4, torch.float32
    for asked in ({"relaxed": True}, {"cost": "euclidean"}):
        assert backends.choose_for(*sizes, "cpu", paired=True, **asked).backend == "reference"
        with pytest.raises(NotImplementedError, match="known pairs"):
            backends.choose_for(*sizes, "cpu", "native", paired=True, **asked)
    monkeypatch.setattr("wcord_fast.ops.dispatch.cannot_run", lambda backend, device: None)
    assert backends.choose_for(*sizes, "cuda", paired=True, relaxed=True).backend == "reference"
    assert backends.choose_for(*sizes, "cuda", paired=True, cost="euclidean").backend == "triton"
