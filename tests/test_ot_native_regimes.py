"""The native CPU solver gives equal numbers for any number of threads, batch and regime, and keeps to its memory."""

import itertools
import os
import sys

import pytest
import torch

import wcord_fast
from tests import ot_oracles as oracle
from tests.rank_pool import alone, run_code
from tests.test_ot_native_accuracy import agree, pair, solve
from wcord_fast import functional as F
from wcord_fast.ops import native_module
from wcord_fast.ops.sinkhorn import native_cpu

pytestmark = pytest.mark.skipif(
    native_module.load() is None, reason=f"no native module: {native_module.unavailable_reason('cpu')}"
)

CASES = [
    {"solver": "sinkhorn", "eps": 0.05},
    {"solver": "sinkhorn", "eps": 1e-3, "tol": 1e-4, "iters": 45, "value": "dual"},
    {"solver": "ipot", "eps": 0.5, "cost": "sqeuclidean"},
]
cases = pytest.mark.parametrize("options", CASES, ids=lambda o: f"{o['solver']}-{o['eps']}")


@pytest.fixture(params=["resident", "streaming"])
def regime(request, monkeypatch):
    monkeypatch.setenv("WCORD_FAST_OT_BYTES", str(1 << 30 if request.param == "resident" else 0))
    return request.param


def same_bits(actual, want):
    assert all(torch.equal(a, b) for a, b in zip((*actual[0], *actual[1:]), (*want[0], *want[1:]), strict=True))


@cases
@pytest.mark.parametrize("batch", [(), (5,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_are_bit_identical_over_threads_and_runs(threads, regime, options, batch, dtype):
    n, m = (300, 170) if not batch else (70, 40)
    x, y = pair(n, m, 20, dtype=dtype, batch=batch)
    threads(1)
    want = solve(x, y, "native", **options)
    for count in (1, 2, 3, 7):
        threads(count)
        for _ in range(2):
            same_bits(solve(x, y, "native", **options), want)


@cases
@pytest.mark.parametrize("n", [40, 520])  # each thread solves problems of its own; all share one problem
def test_batched_problem_equals_the_same_problem_alone(threads, regime, options, n):
    x, y = pair(n, n + 3, 9, dtype=torch.float32, batch=(3,))
    a = oracle.masses(5, 3, n, zeros=[1, 4]).float()
    a[2] = 1 / n
    threads(2)
    assert native_cpu.layout(n, n + 3, 9, problems=3, threads=2).per_thread == (n == 40)
    batched = solve(x, y, "native", a=a, **options)
    for g in range(3):
        alone = solve(x[g], y[g], "native", a=a[g], **options)
        for actual, want in zip((*batched[0], *batched[1:]), (*alone[0], *alone[1:]), strict=True):
            assert torch.equal(actual[g], want)


@cases
@pytest.mark.parametrize(("n", "m", "d"), [(200, 333, 20), (7, 1500, 3), (900, 5, 130)])
def test_streaming_equals_resident(monkeypatch, options, n, m, d):
    x, y = pair(n, m, d)
    a, b = oracle.masses(1, n, zeros=[0, 3, n - 1]), oracle.masses(2, m, zeros=[2])
    if options.get("value") == "dual":
        a, b = a.requires_grad_(), b.requires_grad_()
    want = solve(x, y, "native", a=a, b=b, **options)
    monkeypatch.setenv("WCORD_FAST_OT_BYTES", "0")
    agree(solve(x, y, "native", a=a, b=b, **options), want, 1e-9)
    agree(solve(x, y, "reference", a=a, b=b, **options), want, 1e-9)


def scratch(n, m, d, *, resident=True, threads=1, problems=1, gradients=True):
    budget = 1 << 60 if resident else 0
    layout = native_cpu.layout(n, m, d, problems=problems, gradients=gradients, budget=budget, threads=threads)
    assert layout.regime == ("resident" if resident else "streaming")
    return layout.scratch_bytes


def test_scratch_is_one_matrix_if_resident_and_linear_if_streaming():
    n = 4096
    gradients = 2 * n * 128 * 4
    assert scratch(n, n, 128) + gradients <= 1.3 * 4 * n * n
    assert scratch(n, n, 128, threads=8) + gradients <= 1.3 * 4 * n * n
    small, large = (scratch(k, k, 128, resident=False) for k in (1 << 14, 1 << 17))
    assert large <= 8.1 * small and large < 0.02 * 4 * (1 << 34)
    assert scratch(64, 64, 128, problems=1000, threads=2) == 2 * scratch(64, 64, 128, problems=2, threads=1)


MEASURE = """
import os, sys, torch
from pathlib import Path
from wcord_fast import functional as F
torch.set_num_threads(1)
n, os.environ["WCORD_FAST_OT_BYTES"] = int(sys.argv[1]), sys.argv[2]
x, y = torch.randn(n, 64, requires_grad=True), torch.randn(n, 64, requires_grad=True)
def kilobytes(field):
    return next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(field))
F.ot_cost(x[:64], y[:64], backend="native").backward()
Path("/proc/self/clear_refs").write_text("5")
before = kilobytes("VmRSS")
F.ot_cost(x, y, solver="sinkhorn", iters=2, backend="native").backward()
print(1024 * (kilobytes("VmHWM") - before))
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's peak memory counter")
@pytest.mark.parametrize("resident", [True, False])
def test_measured_peak_memory_stays_below_the_bound(resident, tmp_path):
    n = 2560
    done = alone(tmp_path, run_code, MEASURE, str(n), str(1 << 40 if resident else 0))
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout)
    features = 2 * n * 64 * 4  # twice: the gradients, and their product with grad_output
    assert peak - 2 * features <= (1.3 * 4 * n * n if resident else 0.25 * 4 * n * n), done.stderr


def test_explain_names_the_regime(monkeypatch):
    shape = {"n": 4096, "m": 2048, "dim": 128}
    choice = wcord_fast.explain("ot", **shape)
    assert (choice.backend, choice.plan) == ("native", "resident")
    assert "33,554,432 bytes <= budget 1,073,741,824" in choice.reason
    monkeypatch.setenv("WCORD_FAST_OT_BYTES", "33554431")
    assert wcord_fast.explain("ot", **shape).plan == "streaming"
    assert wcord_fast.explain("ot", **shape, dtype=torch.float64).plan == "streaming"
    assert wcord_fast.explain("ot", backend="reference", **shape).plan == "resident"
    assert wcord_fast.explain("ot", n=64, m=64, dim=8, problems=9).reason.count("problems of its own") == 1
    with pytest.raises(ValueError, match="m: expected an int of at least 1"):
        wcord_fast.explain("ot", n=4, m=0, dim=2)
    with pytest.raises(ValueError, match=r"dtype: expected one of .*, got 'float32'"):
        wcord_fast.explain("ot", n=4, dim=2, dtype="float32")


@pytest.mark.parametrize("text", ["1GB", "-1", "", "9" * 30])
def test_invalid_budget_variable_is_named(monkeypatch, text):
    monkeypatch.setenv("WCORD_FAST_OT_BYTES", text)
    with pytest.raises(ValueError, match="WCORD_FAST_OT_BYTES: expected a number of bytes"):
        F.ot_cost(*pair(4, 4, 2), backend="native")
    monkeypatch.setenv("WCORD_FAST_OT_BYTES", "123")
    assert native_cpu.budget() == 123


def test_bad_value_of_any_problem_is_named_with_several_threads(threads):
    x, y = pair(40, 30, 5, batch=(6,))
    threads(3)
    for g, row in itertools.product((0, 5), (0, 39)):
        bad = x.clone()
        bad[g, row, 2] = float("nan")
        with pytest.raises(ValueError, match=f"x: row {row} of problem {g} holds NaN or inf"):
            F.ot_cost(bad, y, backend="native")
        bad[g, row] = 0
        with pytest.raises(ValueError, match=f"x: row {row} of problem {g} is zero"):
            F.ot_cost(bad, y, backend="native")


@pytest.mark.filterwarnings("ignore:tol = ")
@pytest.mark.parametrize("eps", [0.02, 0.01])
def test_a_tolerance_asked_in_the_iteration_that_stores_the_kernel(eps, threads):
    threads(1)
    x, y = (oracle.features(seed, 64, 16).float() for seed in (0, 1))
    for iters in range(11, 120, 3):  # the kernel is stored in an iteration that depends on how many are left
        options = {"solver": "sinkhorn", "eps": eps, "tol": 0.1, "iters": iters}
        want = F.ot_solve(x, y, backend="reference", **options)
        have = F.ot_solve(x, y, backend="native", **options)
        assert have.iterations == want.iterations, iters
        torch.testing.assert_close(have.cost, want.cost, rtol=2e-5, atol=0)
        columns = F.ot_plan(x, y, backend="native", **options).sum(0)
        torch.testing.assert_close(columns, torch.full_like(columns, 1 / 64), rtol=1e-4, atol=0)


NO_MEMORY = """
import resource, sys, torch
from wcord_fast import functional as F
torch.set_num_threads(int(sys.argv[2]))
calls = {  # each would need the size of its work arrays once more than there is room for
    "matrix": (lambda n: F.ot_cost_from_matrix(torch.rand(n, n), iters=3), 16, 3000),
    "matrices": (lambda n: F.ot_cost_from_matrix(torch.rand(3, n, n), iters=3), 16, 2000),
    "project": (lambda n: F.sinkhorn_project(logits, iters=n).sum().backward(), 5, 200_000),
    "pairs": (lambda n: F.ot_cost(*rows(n), iters=3, pairs=(labels[:n], labels[:n]), rho=0.5), 16, 3000),
}
call, few, many = calls[sys.argv[1]]
logits, labels = torch.randn(16, 16, 16).requires_grad_(), torch.zeros(4000, dtype=torch.int64)
rows = lambda n: (torch.rand(n, 4), torch.rand(n, 4))
call(few)
room = {"matrix": 45, "matrices": 60, "project": 30, "pairs": 60}[sys.argv[1]]
limit = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + room * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    call(many)
except (MemoryError, RuntimeError) as error:
    call(few)
    raise SystemExit(0 if isinstance(error, MemoryError) or "allocate" in str(error) else repr(error))
raise SystemExit("there was enough memory")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("call", ["matrix", "matrices", "project", "pairs"])
def test_a_solve_without_memory_raises_an_error(call, threads, tmp_path):
    done = alone(tmp_path, run_code, NO_MEMORY, call, str(threads))
    assert done.returncode == 0, (done.returncode, done.stderr)
