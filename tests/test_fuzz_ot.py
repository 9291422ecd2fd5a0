"""Random calls of the transport functions: against float64 by the accuracy rule, bad input against its message.

`python -m pytest tests/test_fuzz_ot.py --hypothesis-profile=long` draws many more (see conftest.py).
"""

from __future__ import annotations

import math
import os
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests import bank_fuzz, ot_rule
from wcord_fast import functional as F
from wcord_fast.ops import native_module
from wcord_fast.ops.sinkhorn.reference import SolveOptions, SolveResult

needs_native = pytest.mark.skipif(native_module.load() is None, reason="no native module")
FUNCTIONS = ("ot_cost", "ot_solve", "ot_plan")
SIZES = (1, 2, 3, 4, 5, 31, 32, 33, 63, 64, 65, 96, 97)
DIMS = (1, 2, 7, 16, 17, 128, 130, 515)


@pytest.fixture(autouse=True, scope="module")
def as_before():
    module = native_module.load()
    before = torch.get_num_threads(), module and module.simd()
    yield
    torch.set_num_threads(before[0])
    if module:
        module.set_simd(before[1])


@contextmanager
def environment(draw):
    """Any number of threads, instruction set and budget of stored matrices."""
    torch.set_num_threads(draw(st.sampled_from((1, 2, 5))))
    native_module.module().set_simd(draw(st.sampled_from(("portable", "avx2", "avx512"))))
    budget = draw(st.sampled_from((None, "0", "20000")))
    if budget is not None:
        os.environ["WCORD_FAST_OT_BYTES"] = budget
    try:
        yield
    finally:
        os.environ.pop("WCORD_FAST_OT_BYTES", None)


@st.composite
def problems(draw, cost: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x [G, n, d], y [G, m, d], a [G, n], b [G, m] in fp32, which bf16 and fp16 hold too."""
    g, n, m, d = draw(st.integers(1, 3)), *(draw(st.sampled_from(SIZES)) for _ in "nm"), draw(st.sampled_from(DIMS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    scale = draw(st.sampled_from((1.0, 2.0**-12, 2.0**10) if cost == "cosine" else (1.0, 2.0**-4)))

    def rows(count: int) -> Tensor:
        few = torch.randint(-3, 4, (g, draw(st.sampled_from((1, 2, count))), d), generator=generator) + 0.5
        return few[:, torch.arange(count) % few.shape[1]] * scale  # some of them more than once

    def masses(count: int) -> Tensor:
        w = torch.rand(g, count, generator=generator, dtype=torch.float64) ** draw(st.sampled_from((0, 1, 8)))
        w[:, 1:] *= torch.rand(g, count - 1, generator=generator) < draw(st.sampled_from((1.1, 0.6, 0.0)))
        return (w / w.sum(-1, keepdim=True)).float()

    return rows(n), rows(m), masses(n), masses(m)


def laid_out(t: Tensor, layout: str) -> Tensor:
    """Every [n, d] of `t` [G, n, d] in another memory layout, or the whole with G innermost."""
    if layout == "expanded":
        return t.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    return (
        torch.stack([bank_fuzz.laid_out(rows, layout) for rows in t])
        if len(t) > 1
        else (bank_fuzz.laid_out(t[0], layout)[None])
    )


def by_public_call(x: Tensor, y: Tensor, a: Tensor, b: Tensor, options: SolveOptions) -> SolveResult:
    """`functional.ot_solve` and its gradients, as a backend returns them."""
    inputs = [t.detach().requires_grad_() for t in (x, y)]
    inputs += [t.detach().requires_grad_(options.need_a) for t in (a, b)]
    actual = F.ot_solve(
        *inputs[:2], a=inputs[2], b=inputs[3], cost=options.cost, solver=options.solver, eps=options.eps,
        iters=options.iters, tol=options.tol, value=options.value, backend="native",
    )  # fmt: skip
    grads = torch.autograd.grad(actual.cost.sum(), [t for t in inputs if t.requires_grad])
    return SolveResult(*(t.detach() for t in actual), *grads, *[x.new_empty(0)] * (4 - len(grads)))


@needs_native
@given(st.data())
def test_solves_keep_the_accuracy_rule(data):
    draw = data.draw
    cost, solver = draw(st.sampled_from(("cosine", "sqeuclidean"))), draw(st.sampled_from(("sinkhorn", "ipot")))
    x, y, a, b = draw(problems(cost))
    value = draw(st.sampled_from(("cost", "dual"))) if solver == "sinkhorn" else "cost"
    largest = 1.0 if cost == "cosine" else float(torch.cdist(x.double(), y.double()).square().max()) or 1.0
    eps = largest * draw(st.sampled_from((0.5, 0.05, 1e-3) if solver == "sinkhorn" else (0.5, 2.0)))
    tol = draw(st.sampled_from((None, 1e-2, 1e-12)))
    options = ot_rule.solve_args(cost, solver, eps, draw(st.sampled_from((1, 2, 10, 11, 50))), tol=None, value=value)
    layouts = [draw(st.sampled_from(bank_fuzz.LAYOUTS)) for _ in "xy"]
    given_x, given_y = (laid_out(t, layout) for t, layout in zip((x, y), layouts, strict=True))
    before = [t.clone() for t in (given_x, given_y, a, b)]

    with environment(draw):

        def solve(_x, _y, *rest):
            return by_public_call(given_x, given_y, *rest)

        ours = ot_rule.assert_rule(solve, x, y, a, b, options, lattice=True)
        assert all(torch.equal(s, t) for s, t in zip(before, (given_x, given_y, a, b), strict=True))

        for dtype in (torch.bfloat16, torch.float16):  # the same numbers: the same results, gradients rounded once
            narrow = by_public_call(given_x.to(dtype), given_y.to(dtype), a, b, options)
            assert narrow.grad_x.dtype is dtype and torch.equal(narrow.grad_x, ours.grad_x.to(dtype))
            assert torch.equal(narrow.value, ours.value) and torch.equal(narrow.alpha, ours.alpha)

        wide = by_public_call(*(t.double() for t in (given_x, given_y)), a.double(), b.double(), options)
        exact = ot_rule.reference.ot_solve(x.double(), y.double(), a.double(), b.double(), options)
        sharp = 1e-13 * (1 + float(exact.scale.max()) * largest)
        for name in ("value", "grad_x", "grad_y", "grad_a", "grad_b"):
            expected = getattr(exact, name)
            error, size = ot_rule.distance(getattr(wide, name), expected), ot_rule.size(expected)
            assert error <= 1e-9 * size + sharp * largest * 10, (name, error, size)

        if tol is not None:
            stopped = by_public_call(given_x, given_y, a, b, options._replace(tol=tol))
            early = stopped.iterations < options.iters
            assert bool((stopped.iterations <= options.iters).all())
            assert bool((stopped.marginal_error[early] <= tol + 1e-5).all())
            assert torch.equal(stopped.value[~early], ours.value[~early])
            if options.iters > 10:  # the first test of tol, and its error except for rounding
                error = by_public_call(given_x, given_y, a, b, options._replace(iters=10)).marginal_error
                assert bool((stopped.iterations[error < 0.8 * tol] == 10).all())
                assert bool((stopped.iterations[error > 1.25 * tol + 1e-3] > 10).all())


def corrupted(name: str, call: dict) -> list[object]:
    """Values that argument `name` must refuse."""
    rows, count = (call["x"], call["x"].shape[0]) if name in "xa" else (call["y"], call["y"].shape[0])
    common = [None, "five", object()]
    if name in "xy":
        bad = [rows.long(), rows.bool(), rows.to_sparse(), rows[0], rows[None, None], rows[:0], rows[:, :0], rows.numpy]
        bad += [rows.to("meta"), rows[:, :-1] if rows.shape[1] > 1 else rows.repeat(1, 2), rows[None]]
        bad += [rows.tolist(), rows + 1j]
        for wrong in (math.nan, math.inf, -math.inf):
            for at in ((0, 0), (-1, -1)):
                bad.append(rows.clone().index_put_(tuple(torch.tensor([i]) for i in at), torch.tensor(wrong)))
        if call["cost"] == "cosine":
            bad.append(rows * (torch.arange(count)[:, None] != 0))  # a row of no direction; the first has mass
    elif name in "ab":
        common, even = common[1:], torch.full((count,), 1 / count)
        bad = [even.long(), even[None, None], even[:0], torch.full((count + 1,), 1 / (count + 1)), even.to("meta")]
        bad += [even * 1.01, even * 0, even * math.nan, even * math.inf, even.tolist(), 1.0]
        bad.append(torch.cat((torch.tensor([-0.5, 1.5]), even[2:] * 0)) if count > 1 else -even)
    elif name == "cost":
        bad = ["Cosine", "manhattan", "", 3]
    elif name == "solver":
        bad = ["IPOT", "emd", "", 3]
    elif name == "eps":
        common, bad = common[1:], [0, -0.5, math.nan, math.inf, 1e-320, True, torch.tensor(0.5)]
    elif name == "iters":
        bad = [0, -1, 1.5, 2**31, True, math.inf]
    elif name == "tol":
        common, bad = common[1:], [-1e-3, math.nan, math.inf, True]
    elif name == "value":
        bad = ["Cost", "primal", "", 3]
    elif name == "debias":
        bad = [0, 1, "True"]
    else:
        bad = ["cuda", "Native", "", 3]
    return common + bad


@pytest.mark.parametrize("function", FUNCTIONS)
@given(data=st.data())
def test_bad_input_is_named(function, data):
    draw = data.draw
    cost = draw(st.sampled_from(("cosine", "sqeuclidean")))
    x, y, a, b = (t[0] for t in draw(problems(cost)))
    x = x + torch.arange(len(x))[:, None] * 1e-3  # none of them a zero row
    call = {"x": x, "y": y, "a": None, "b": None, "cost": cost, "solver": "sinkhorn", "eps": 0.05, "iters": 3}
    call |= {
        "tol": None,
        "value": "cost",
        "debias": False,
        "backend": draw(st.sampled_from(("auto", "native", "reference"))),
    }
    if draw(st.booleans()):
        call |= {"a": a, "b": b}
    name = draw(st.sampled_from(sorted(call)))
    before = [t.clone() for t in (x, y, a, b)]
    either = "x|y" if name in "xy" else name  # of two that do not fit together, either
    for value in corrupted(name, call):
        options = call | {name: value}
        with pytest.raises((ValueError, TypeError, NotImplementedError), match=rf"\b({either})\b"):
            getattr(F, function)(options.pop("x"), options.pop("y"), **options)
    assert all(torch.equal(s, t) for s, t in zip(before, (x, y, a, b), strict=True))
