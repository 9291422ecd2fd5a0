"""The optimal-transport kernels for given costs, thread by thread on the CPU, against the float64 reference."""

from __future__ import annotations

import math
from ctypes import c_uint64

import pytest
import torch

from wcord_fast.ops import status
from wcord_fast.ops.sinkhorn import matrix_native_cuda, matrix_reference, native_cuda, reference
from wcord_fast.ops.sinkhorn.native_cuda import Plan
from wcord_fast.ops.status import Code

from . import test_cuda_sinkhorn as cuda_cases
from .cuda_on_cpu import build
from .ot_oracles import masses
from .test_cuda_sinkhorn import F32, F64, strips

library, kernels, regime = cuda_cases.library, cuda_cases.kernels, cuda_cases.regime

pytestmark = [pytest.mark.slow, pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")]


class Given:
    """Costs in [0, 1.5), one matrix or one for each problem, and masses; `zeros`: rows and columns without mass."""

    def __init__(self, n, m, problems=1, own=False, zeros=True, dtype=F32):
        generator = torch.Generator().manual_seed(4)
        shape = (problems if own else 1, n, m)
        self.c = (1.5 * torch.rand(*shape, generator=generator, dtype=F64)).to(dtype)
        wide = reference.accumulation_dtype(dtype)
        self.a = masses(5, problems, n, zeros=(n // 2,) if zeros and n > 1 else (), dtype=wide)
        self.b = masses(6, problems, m, zeros=(0, m - 1) if zeros and m > 2 else (), dtype=wide)

    def solve(
        self, module=matrix_native_cuda, *, wide=False, solver="sinkhorn", eps=0.1, iters=12, tol=None, value="cost"
    ):
        options = reference.SolveOptions("given", solver, eps, iters, tol, value, False, False, True, True)
        c, a, b = (t.double() for t in (self.c, self.a, self.b)) if wide else (self.c, self.a, self.b)
        solved = module.solve(c, a, b, options)
        weight = torch.linspace(-1, 2, a.shape[0], dtype=a.dtype)
        return solved, module.gradient(c, solved.alpha, solved.beta, solved.scale, weight)

    def check(self, **options):
        """Every result against the float64 reference, by the accuracy rule; returns the kernel's."""
        (exact, exact_grad), (plain, plain_grad) = (
            self.solve(matrix_reference, wide=w, **options) for w in (True, False)
        )
        actual, grad = self.solve(**options)
        assert torch.equal(actual.iterations, exact.iterations) and grad.shape == self.c.shape
        torch.testing.assert_close(actual.scale.double(), exact.scale, rtol=1e-7, atol=0)
        compared = {"gradient": (grad, exact_grad, plain_grad)}
        for name in ("value", "alpha", "beta", "marginal_error", "grad_a", "grad_b"):
            compared[name] = tuple(getattr(s, name) for s in (actual, exact, plain))
        for name, (g, w, p) in compared.items():
            assert g.shape == w.shape and g.dtype == plain.value.dtype, name
            assert torch.equal(g == -math.inf, w == -math.inf), name
            if not w.numel():
                continue
            finite = w.isfinite()
            g, w, p = g.double()[finite], w[finite], p.double()[finite]
            least = {"gradient": 0.01}.get(name, 1.0)
            floor = 1e-11 if self.c.dtype == F64 else 1e-5 if name == "value" else 1e-4
            times = 3 if "grad" in name else 2
            bound = max(floor * max(float(w.abs().max()), least), times * float((p - w).abs().max()))
            assert float((g - w).abs().max()) <= bound, (name, float((g - w).abs().max()), bound)
        return actual


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("solver", ["sinkhorn", "ipot"])
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("shape", [(24, 20), (7, 70), (70, 7), (1, 1), (1, 13), (13, 1)], ids=str)
def test_every_output_equals_the_reference(regime, shape, dtype, solver, own):
    value = "dual" if solver == "sinkhorn" else "cost"
    eps = 0.05 if solver == "sinkhorn" else 0.5
    Given(*shape, problems=3, own=own, dtype=dtype).check(solver=solver, eps=eps, value=value)


@pytest.mark.parametrize(("solver", "eps"), [("sinkhorn", 1e-3), ("sinkhorn", 1e-4), ("ipot", 0.01)])
def test_scalings_far_out_of_range(regime, solver, eps):
    Given(21, 26, problems=2, own=True).check(solver=solver, eps=eps, iters=23)


def test_wide_rows_take_several_groups_of_columns(regime):
    Given(9, 300).check(iters=4)
    Given(5, 600, problems=2, own=True, dtype=F64).check(eps=0.01, iters=3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_costs_are_read_as_they_are(regime, dtype):
    p = Given(8, 9, problems=2, own=True, dtype=dtype)
    narrow = p.check(iters=5)
    p.c = p.c.float()
    assert all(torch.equal(u, v) for u, v in zip(narrow, p.solve(iters=5)[0], strict=True))


def test_every_problem_stops_when_it_has_converged(regime):
    p = Given(9, 8, problems=3, own=True)
    p.c[2] = 0.5  # all costs equal: one iteration is enough
    actual = p.check(eps=0.1, iters=35, tol=1e-4)
    assert actual.iterations[2] == 10 and len(set(actual.iterations.tolist())) >= 2


def test_more_problems_than_blocks(kernels, monkeypatch):
    monkeypatch.setattr(native_cuda, "plan", lambda device, n, *_: Plan("resident", 2, n, 8, 0))
    Given(6, 9, problems=21).check(iters=6)  # the gradient's slices of problems are not of one length
    monkeypatch.setattr(native_cuda, "plan", lambda device, n, *_: strips(n, 3, 2))
    Given(13, 11, problems=5, own=True).check(iters=6)


def test_strided_costs_and_masses(regime):
    p = Given(6, 7, problems=2, own=True)
    packed = p.solve()
    p.c, p.a = p.c.mT.contiguous().mT, p.a.repeat_interleave(2, 1)[:, ::2]
    assert not p.c.is_contiguous()
    for u, v in zip((*packed[0], packed[1]), (*p.solve()[0], p.solve()[1]), strict=True):
        assert torch.equal(u, v)


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("value", [-1e-3, math.nan, math.inf])
def test_a_bad_cost_spoils_the_problems_that_have_it(regime, own, value):
    p = Given(9, 7, problems=4, own=own, zeros=False)
    good, _ = p.solve(value="dual")
    assert int(status.word(p.c.device)) == 0
    p.c[-1, 8, 2] = value
    actual, _ = p.solve(value="dual")
    assert int(status.word(p.c.device)) == Code.OT_INPUT
    fine = [0, 1, 2] if own else []
    for name in matrix_reference.MatrixResult._fields:
        g, w = getattr(actual, name), getattr(good, name)
        assert torch.equal(g[fine], w[fine]), name
        assert not g.is_floating_point() or g[len(fine) :].isnan().all(), name


def test_bad_masses_are_flagged(regime):
    p = Given(6, 7, problems=3, zeros=False)
    p.b[1] *= 1.001
    actual, _ = p.solve()
    assert int(status.word(p.c.device)) == Code.MARGINAL and actual.value.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", [F32, F64])
def test_bits_do_not_depend_on_the_order_of_threads(regime, library, dtype):
    p = Given(14, 70, problems=11, own=False, dtype=dtype)
    runs = []
    for seed in (1, 2):
        library.cuda_on_cpu_seed(c_uint64(seed))
        solved, gradient = p.solve(eps=1e-3, value="dual", iters=12, tol=1e-30)
        runs.append((*solved, gradient))
    assert all(torch.equal(u, v) for u, v in zip(*runs, strict=True))


def test_regime_is_chosen_by_size_and_memory(kernels, monkeypatch):
    """On the emulated device: 8 SMs of 2048 threads and 227 KB."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    plan = native_cuda.plan
    assert plan(0, 64, 64, F32, 500, True)[:3] == ("resident", 4 * 8, 64)
    assert plan(0, 256, 256, F32, 1, True)[:3] == ("cooperative", 8, 32)
    assert "fits neither" in matrix_native_cuda.unavailable_reason(2000, 2000)
    assert "reach" in matrix_native_cuda.unavailable_reason(8, 8, relaxed=True)
    with pytest.raises(NotImplementedError, match="fits neither"):
        Given(2000, 2000).solve()
    Given(26, 300, problems=2, own=True).check(iters=2)  # by the real choice


def test_the_marginal_error_is_optional(kernels):
    p = Given(5, 6)
    options = reference.SolveOptions(
        "given", "sinkhorn", 0.1, 4, None, "cost", False, False, False, False, need_error=False
    )
    assert matrix_native_cuda.solve(p.c, p.a, p.b, options).marginal_error.shape == (0,)
