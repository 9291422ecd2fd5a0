"""The native CPU solver against the float64 reference: both solvers and costs, every eps, shapes, masses, options."""

import itertools

import pytest
import torch

from tests import ot_oracles as oracle
from wcord_fast import functional as F
from wcord_fast.ops import native_module

pytestmark = pytest.mark.skipif(
    native_module.load() is None, reason=f"no native module: {native_module.unavailable_reason('cpu')}"
)

COSTS = ("cosine", "sqeuclidean")
SOLVERS = ("sinkhorn", "ipot")
SETS = ("portable", "avx2", "avx512")
both = pytest.mark.parametrize(("cost", "solver"), list(itertools.product(COSTS, SOLVERS)))


@pytest.fixture
def simd():
    """A function that chooses an instruction set (and skips if it is not there), undone afterwards."""
    module = native_module.module()
    before = module.simd()

    def choose(name):
        if not module.set_simd(name):
            pytest.skip(f"this CPU or build has no {name}")

    yield choose
    assert module.set_simd(before)


def pair(n, m, d, *, seed=0, dtype=torch.float64, batch=()):
    """Features whose squared distances are about 1."""
    x, y = oracle.features(seed, *batch, n, d), oracle.features(seed + 1, *batch, m, d)
    return (x / (2 * d) ** 0.5).to(dtype), (y / (2 * d) ** 0.5).to(dtype)


def solve(x, y, backend, **options):
    """The solution and the gradients of x and y (and of a and b, if they require one)."""
    x, y = x.detach().clone().requires_grad_(), y.detach().clone().requires_grad_()
    masses = [m for m in (options.get("a"), options.get("b")) if m is not None and m.requires_grad]
    solved = F.ot_solve(x, y, backend=backend, **options)
    return solved, *torch.autograd.grad(solved.cost.sum(), (x, y, *masses))


def agree(actual, expected, tolerance):
    """All results of two solves agree within `tolerance` of the largest entry; so do the places of -inf."""
    names = (*actual[0]._fields, *range(len(actual) - 1))
    for name, a, b in zip(names, (*actual[0], *actual[1:]), (*expected[0], *expected[1:]), strict=True):
        assert a.dtype == (torch.int32 if name == "iterations" else torch.float64)
        assert torch.equal(a.isinf(), b.isinf()), name
        a, b = a.masked_fill(a.isinf(), 0).double(), b.masked_fill(b.isinf(), 0).double()
        assert (a - b).abs().max() <= tolerance * max(1.0, b.abs().max()), name


def errors(actual, expected):
    """Relative value error, absolute error of the potentials, gradient error relative to the largest entry.

    Means over a batch: a single problem's error is luck, and the loop's may be lucky.
    """

    def worst(a, b):
        return (a - b).flatten(1).abs().amax(-1)

    value = ((actual[0].cost - expected[0].cost) / expected[0].cost).abs()
    potentials = torch.maximum(worst(actual[0].alpha, expected[0].alpha), worst(actual[0].beta, expected[0].beta))
    gradient = torch.stack([worst(g, w) / worst(w, 0 * w) for g, w in zip(actual[1:], expected[1:], strict=True)]).amax(
        0
    )
    return value.mean().item(), potentials.mean().item(), gradient.mean().item()


@both
@pytest.mark.parametrize("eps", [0.5, 0.1, 0.05, 1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("name", SETS)
def test_the_accuracy_rule(simd, name, cost, solver, eps):
    simd(name)
    options = {"cost": cost, "solver": solver, "eps": eps}
    x, y = pair(70, 45, 20, batch=(4,))
    expected = solve(x, y, "reference", **options)
    agree(solve(x, y, "native", **options), expected, 1e-11 / min(eps, 1e-2))
    result = errors(solve(x.float(), y.float(), "native", **options), expected)
    naive = errors(solve(x.float(), y.float(), "reference", **options), expected)
    limits = (1e-5, 1e-4, 1e-4)
    for error, limit, factor, loop in zip(result, limits, (2, 2, 3), naive, strict=True):
        assert error <= max(limit, factor * loop)


@pytest.mark.parametrize(("solver", "eps"), [("sinkhorn", 0.05), ("sinkhorn", 1e-3), ("ipot", 0.5)])
@pytest.mark.parametrize("n", [256, 1000])
def test_the_accuracy_rule_at_the_sizes_of_training(solver, eps, n):
    options = {"solver": solver, "eps": eps, "iters": 50 if n < 1000 else 20}
    x, y = pair(n, n + 30, 128)
    expected = solve(x, y, "reference", **options)
    agree(solve(x, y, "native", **options), expected, 1e-11 / min(eps, 1e-2))
    result = errors_of_one(x.float(), y.float(), "native", options, expected)
    loop = errors_of_one(x.float(), y.float(), "reference", options, expected)
    for error, limit, factor, naive in zip(result, (1e-5, 1e-4, 1e-4, 1e-4, 1e-4), (2, 2, 2, 3, 3), loop, strict=True):
        assert error <= max(limit, factor * naive)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 40), (40, 1), (3, 31), (5, 33), (63, 64), (66, 130), (130, 1030)])
@pytest.mark.parametrize("solver", SOLVERS)
def test_rectangles_with_every_remainder_of_the_tiles(n, m, solver):
    for cost, dim in zip(itertools.cycle(COSTS), (1, 2, 37)):
        x, y = pair(n, m, dim)
        options = {"cost": cost, "solver": solver, "eps": 0.3, "iters": 12}
        agree(solve(x, y, "native", **options), solve(x, y, "reference", **options), 1e-11)


@both
@pytest.mark.parametrize("dim", [127, 128, 300, 2048])
@pytest.mark.parametrize("name", SETS)
def test_any_width(simd, name, cost, solver, dim):
    simd(name)
    x, y = pair(21, 34, dim)
    options = {"cost": cost, "solver": solver, "eps": 0.1, "iters": 11}
    agree(solve(x, y, "native", **options), solve(x, y, "reference", **options), 1e-11)


@both
def test_masses_with_zeros_tiny_and_single(cost, solver):
    x, y = pair(45, 70, 6)
    some = oracle.masses(3, 45, zeros=[0, 7, 8, 44])
    tiny = oracle.masses(4, 70, zeros=range(30, 50))
    tiny[60:] *= 1e-25
    one = torch.eye(70, dtype=torch.float64)[69]
    for a, b in ((some, tiny / tiny.sum()), (None, one), (some, None)):
        options = {"a": a, "b": b, "cost": cost, "solver": solver, "eps": 0.05, "iters": 20}
        agree(solve(x, y, "native", **options), solve(x, y, "reference", **options), 1e-9)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("eps", [0.2, 0.01])
def test_dual_value_and_gradients_of_the_masses(cost, eps):
    x, y = pair(30, 45, 6)
    a = oracle.masses(3, 30, zeros=[0, 1, 2, 17, 29]).requires_grad_()
    b = oracle.masses(4, 45, zeros=[44]).requires_grad_()
    for tol in (None, 1e-3):
        options = {"a": a, "b": b, "cost": cost, "solver": "sinkhorn", "value": "dual", "eps": eps, "tol": tol}
        agree(solve(x, y, "native", **options), solve(x, y, "reference", **options), 1e-11)


@both
@pytest.mark.parametrize("eps", [0.3, 0.004])
def test_early_stop_is_per_problem(cost, solver, eps):
    x, y = pair(20, 17, 3, batch=(6,))
    options = {"cost": cost, "solver": solver, "eps": eps, "iters": 73, "tol": 2e-3 if eps > 0.1 else 0.05}
    actual, expected = solve(x, y, "native", **options), solve(x, y, "reference", **options)
    agree(actual, expected, 1e-9)
    counts = F.ot_solve(x, y, backend="native", **{**options, "tol": 1e-30}).iterations
    assert counts.tolist() == [73] * 6


def test_only_the_gradients_asked_for_are_computed():
    x, y = pair(10, 12, 4)
    expected = solve(x, y, "native")
    for needs in itertools.product((False, True), repeat=2):
        leaves = [t.clone().requires_grad_(need) for t, need in zip((x, y), needs, strict=True)]
        cost = F.ot_cost(*leaves, backend="native")
        assert torch.equal(cost, expected[0].cost)
        if any(needs):
            cost.backward()
        for leaf, need, grad in zip(leaves, needs, expected[1:], strict=True):
            assert torch.equal(leaf.grad, grad) if need else leaf.grad is None


def test_equal_costs_and_duplicates():
    x, y = pair(9, 8, 5)
    same, twins = x[:1].expand(9, 5), y[[0, 0, 1, 1, 2, 2, 3, 3]]
    for a, b in ((same, same[:4]), (x, x.clone()), (twins, twins), (same, y)):
        for solver, eps in itertools.product(SOLVERS, (0.5, 0.03, 1e-3)):
            options = {"solver": solver, "eps": eps, "iters": 30}
            agree(solve(a, b, "native", **options), solve(a, b, "reference", **options), 1e-9)


@pytest.mark.parametrize(("dtype", "eps"), [(torch.float64, 0.005), (torch.float32, 0.03)])
def test_outlier_that_overflows_the_stored_kernel_is_solved(dtype, eps):
    """s C is small enough for a kernel to be stored, but its last column receives less than the safe range allows."""
    x = torch.ones(9, 5, dtype=dtype) + 0.1 * oracle.features(3, 9, 5, dtype=dtype)
    y = torch.cat([x[:7] + 0.02 * oracle.features(4, 7, 5, dtype=dtype), -x[:1]])
    options = {"solver": "sinkhorn", "eps": eps, "iters": 30}
    expected = solve(x.double(), y.double(), "reference", **options)
    if dtype == torch.float64:
        agree(solve(x, y, "native", **options), expected, 1e-10)
    else:
        actual, loop = (
            errors_of_one(x, y, "native", options, expected),
            errors_of_one(x, y, "reference", options, expected),
        )
        assert all(e <= max(1e-5, 2 * r) for e, r in zip(actual, loop, strict=True))


def test_rows_past_the_first_chunk_that_forbid_a_stored_kernel():
    """The first 64 rows have one distance to all columns. The last row does not: its s C spans 1000."""
    x = torch.zeros(70, 3, dtype=torch.float64)
    x[:, 0], x[69] = 1, torch.tensor([0, 1, 0.1])
    y = oracle.features(5, 20, 3)
    y[:, 0] *= 1e-3
    options = {"solver": "sinkhorn", "eps": 0.002, "iters": 15}
    agree(solve(x, y, "native", **options), solve(x, y, "reference", **options), 1e-9)


def errors_of_one(x, y, backend, options, expected):
    actual = solve(x, y, backend, **options)
    pairs = [
        (actual[0].cost, expected[0].cost),
        (actual[0].alpha, expected[0].alpha),
        (actual[0].beta, expected[0].beta),
    ]
    return [
        ((g - w).abs().max() / w.abs().max()).item() for g, w in (*pairs, *zip(actual[1:], expected[1:], strict=True))
    ]


@pytest.mark.parametrize("solver", SOLVERS)
def test_plan_satisfies_the_column_marginals(solver):
    x, y = pair(50, 60, 8, dtype=torch.float32, batch=(2,))
    b = oracle.masses(1, 2, 60, zeros=[3]).float()
    for cost, iters in itertools.product(COSTS, (1, 50, 300)):
        options = {"b": b, "cost": cost, "solver": solver, "iters": iters, "backend": "native"}
        plan, solved = F.ot_plan(x, y, **options), F.ot_solve(x, y, **options)
        assert (plan.sum(-2) - b).abs().sum(-1).max() < 1e-5 and (plan[..., 3] == 0).all()
        torch.testing.assert_close((plan.sum(-1) - 1 / 50).abs().sum(-1), solved.marginal_error, rtol=1e-3, atol=1e-5)


def test_strides_narrow_dtypes_and_default_device():
    x, y = pair(10, 12, 8, dtype=torch.float32)
    expected = F.ot_cost(x, y, backend="native")
    wide = torch.zeros(10, 16)
    wide[:, ::2] = x
    assert torch.equal(F.ot_cost(wide[:, ::2], y.mT.contiguous().mT, backend="native"), expected)
    with torch.device("meta"):
        assert torch.equal(F.ot_cost(x, y, backend="native"), expected)
        assert F.ot_plan(x, y, backend="native").device.type == "cpu"
    for dtype in (torch.float16, torch.bfloat16):
        narrow = [t.to(dtype).requires_grad_() for t in (x, y)]
        cost = F.ot_cost(*narrow, backend="native")
        assert cost.dtype == torch.float32
        assert torch.equal(cost, F.ot_cost(*(t.float() for t in narrow), backend="native"))
        assert torch.autograd.grad(cost, narrow)[0].dtype == dtype
