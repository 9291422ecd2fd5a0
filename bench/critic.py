"""The critic alone: draws, scores, losses and gradients of both directions, without the banks' update.

    python -m bench critic [--shapes 64,16384,50000 ...] [--threads 1] [--quick]

Ours by plan and backend, RepDistiller's form, the best plain PyTorch and the same under torch.compile. Theirs are given
their draws. The gate is that of `bench bank`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from bench.bank import CHECKED, errors, right, simd
from bench.bank_providers import Case, Compiled, CriticAlone, Form, Naive, Ours, Plain
from bench.contest import Contest, run
from bench.floor import critic_floor_ms
from bench.options import add_shapes, keep, parsed, parser

SHAPES = ((64, 4096, 50_000), (64, 16384, 50_000), (256, 16384, 50_000))
QUICK = (64, 4096, 20_000)


def contest(shape: tuple[int, int, int], dim: int = 128) -> Contest:
    """The forms at (B, K, N). They share the banks, which no form writes."""
    case = Case(*shape, dim)
    expected = case.answers(min(CHECKED, case.batch))
    theirs: dict[str, Callable[[], Form]] = {
        "naive": lambda: Naive(case, copy=False),
        "plain": lambda: Plain(case, copy=False),
        "compile": lambda: Compiled(case, copy=False),
    }
    ours = {
        plan if backend == "native" else f"{plan}, {backend}": lambda p=plan, b=backend: Ours(case, p, b, copy=False)
        for backend in ("native", "reference")
        for plan in ("gather", "dense")
    }
    forms = {name: lambda make=make: CriticAlone(make()) for name, make in (theirs | ours).items()}
    sizes = dict(zip(("batch", "k", "num_data", "dim"), (*shape, dim), strict=True))
    floor = partial(critic_floor_ms, *shape, dim)
    return Contest(sizes, forms, lambda form: errors(form, expected), right, floor=floor, notes={"simd": simd()})


def quick_contests() -> list[Contest]:
    return [contest(QUICK)]


def main(arguments: list[str]) -> int:
    p = parser("critic", __doc__, f"the shape {QUICK}")
    add_shapes(p, "B,K,N", SHAPES)
    a = parsed(p, arguments)
    rows, fine = run(quick_contests() if a.quick else (contest(s, a.dim) for s in a.shapes), a.repeats, a.clock)
    keep("critic", rows, a)
    return 0 if fine else 1
