"""Known pairs in the optimal-transport kernels, thread by thread on the CPU, against the float64 reference."""

from __future__ import annotations

from ctypes import c_uint64

import pytest
import torch

from wcord_fast import functional as F
from wcord_fast.ops.sinkhorn import native_cuda, reference
from wcord_fast.ops.sinkhorn.native_cuda import Plan
from wcord_fast.ops.sinkhorn.pairs import Pairs

from . import test_cuda_sinkhorn as cuda_cases
from .cuda_on_cpu import build
from .test_cuda_sinkhorn import F32, F64, Problem, strips

library, kernels, regime = cuda_cases.library, cuda_cases.kernels, cuda_cases.regime

pytestmark = [pytest.mark.slow, pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")]


class PairedProblem(Problem):
    """Rows without a partner, several rows of one column, columns of one label, columns without a row."""

    def __init__(self, n, m, d, problems=1, kinds=None, rho=0.9, **options):
        super().__init__(n, m, d, problems, **options)
        kinds = kinds or max(1, m - 1)
        rows = torch.arange(problems * n).view(problems, n) % (kinds + 1) - 1
        columns = torch.arange(problems * m).view(problems, m) % (kinds + 2) - 1
        self.pairs = Pairs(rows, columns, rho)

    def call(self, run, options):
        return run(self.x, self.y, self.a, self.b, options, self.pairs)


@pytest.mark.parametrize("cost", ["cosine", "sqeuclidean"])
@pytest.mark.parametrize("solver", ["sinkhorn", "ipot"])
@pytest.mark.parametrize("shape", [(24, 20, 9), (7, 40, 3), (1, 1, 1), (13, 2, 5), (9, 90, 3)], ids=str)
@pytest.mark.parametrize("dtype", [F32, F64])
def test_every_output_equals_the_reference(regime, shape, solver, cost, dtype):
    value = "dual" if solver == "sinkhorn" else "cost"
    eps = 0.5 if solver == "ipot" else 0.05
    PairedProblem(*shape, dtype=dtype).check(cost=cost, solver=solver, eps=eps, iters=7, value=value)


@pytest.mark.parametrize(("solver", "eps"), [("sinkhorn", 0.5), ("sinkhorn", 1e-3), ("ipot", 0.5), ("ipot", 0.01)])
@pytest.mark.parametrize("rho", [0.1, 0.99999])
def test_weak_and_strong_prior(regime, solver, eps, rho):
    for kinds in (1, 4, None):
        PairedProblem(21, 26, 10, kinds=kinds, rho=rho).check(solver=solver, eps=eps, iters=23)


def test_more_rows_than_one_turn_of_the_narrow_kernel(regime):
    PairedProblem(70, 30, 4).check(iters=3)


@pytest.mark.parametrize("solver", ["sinkhorn", "ipot"])
def test_each_problem_of_a_batch_has_its_own_labels_and_stops_on_its_own(regime, solver):
    p = PairedProblem(9, 8, 6, problems=3, seed=3)
    p.pairs.rows[1] = -1  # no pair: the problem without pairs, to the bit
    actual = p.check(solver=solver, eps=0.2, iters=25, tol=2e-3)
    plain = Problem(9, 8, 6, problems=3, seed=3).solve(native_cuda.ot_solve, solver=solver, eps=0.2, iters=25, tol=2e-3)
    for ours, without in zip(actual, plain, strict=True):
        assert ours.numel() == 0 or torch.equal(ours[1], without[1])
    assert not torch.equal(actual.value, plain.value)


@pytest.mark.parametrize("solver", ["sinkhorn", "ipot"])
def test_rho_0_equals_the_problem_without_pairs_bit_for_bit(regime, solver):
    paired, plain = PairedProblem(12, 9, 4, rho=0.0), Problem(12, 9, 4)
    for ours, without in zip(*(p.solve(native_cuda.ot_solve, solver=solver) for p in (paired, plain)), strict=True):
        assert torch.equal(ours, without)


@pytest.mark.parametrize("solver", ["sinkhorn", "ipot"])
def test_bits_do_not_depend_on_the_order_of_threads(regime, library, solver):
    p, runs = PairedProblem(14, 70, 6, problems=2, kinds=3), []
    for seed in (1, 2, 3):
        library.cuda_on_cpu_seed(c_uint64(seed))
        runs.append(p.solve(native_cuda.ot_solve, solver=solver, iters=6))
    for other in runs[1:]:
        assert all(torch.equal(u, v) for u, v in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("solver", ["sinkhorn", "ipot"])
def test_blocks_and_groups_take_several_problems(kernels, monkeypatch, solver):
    p, results = PairedProblem(13, 11, 4, problems=5), []
    for plan in (Plan("resident", 2, 13, 8, 0), strips(13, 3, 1), strips(13, 3, 2)):
        monkeypatch.setattr(native_cuda, "plan", lambda *_, plan=plan: plan)
        results.append(p.check(solver=solver, eps=0.3, iters=5))
    assert all(torch.equal(one, two) for one, two in zip(*results[1:], strict=True))


def test_the_plan_of_the_kernel_s_potentials_is_that_of_ot_plan(regime):
    """By way of the public functions' own formula: the potentials' plan times the reference plan."""
    p = PairedProblem(10, 10, 5, zeros=False)
    labels = torch.arange(10)
    p.pairs = Pairs(labels.expand(1, 10), labels.expand(1, 10), 0.99)
    p.a = p.b = torch.full((1, 10), 0.1)
    solved = p.solve(native_cuda.ot_solve, solver="sinkhorn", eps=0.1)
    known = reference.log_reference(p.a, p.b, p.pairs).exp()
    plan = reference.ot_plan(p.x, p.y, solved.alpha, solved.beta, solved.scale, "cosine") * known
    options = {"solver": "sinkhorn", "eps": 0.1, "iters": 20, "pairs": "diagonal", "rho": 0.99}
    expected = F.ot_plan(p.x[0].double(), p.y[0].double(), **options, backend="reference")
    torch.testing.assert_close(plan[0].double(), expected, rtol=1e-4, atol=1e-6)
