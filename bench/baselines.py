"""The baselines' waste: nst, rkd, sp, pkt and cc as the public code computes them, and as this library does.

    python -m bench baselines [--methods nst,rkd] [--batches 64 256] [--threads 1] [--quick]

A step is the loss's value and gradients from given features of resnet32x4 and resnet8x4 on 32x32 images. One process,
interleaved, medians. A ratio is printed only for a form that equals float64 in this very run: its relative error is at
most 1e-5 (gradient: 1e-4), or twice (three times) that of the public form in the same precision.
"""

from __future__ import annotations

from functools import partial

from bench.baseline_providers import NAIVE, Case, Naive, Ours
from bench.contest import Contest, run
from bench.options import keep, parsed, parser

STUDENT, TEACHER = "resnet8x4", "resnet32x4"

FACTOR = {"value": 2, "grad": 3}  # how far above the public form's error ours may be
TINY = {"value": 1e-5, "grad": 1e-4}  # and the errors that both may have
CANCELS = {"pkt": 10}  # its terms have both signs and in all some 40 times the value, and so has their rounding
QUICK = 4
SANE = 1e-2  # the public form itself
LARGEST = {"nst": 64}  # batch above which the public form takes gigabytes


def errors(form, expected) -> dict[str, float]:
    """Relative errors of the value and of the gradients' norm."""
    value, grads = form.step()
    off = sum(float((g.double() - e).square().sum()) for g, e in zip(grads, expected[1], strict=True))
    size = sum(float(e.square().sum()) for e in expected[1])
    return {"value": float(((value.double() - expected[0]) / expected[0]).abs()), "grad": (off / size) ** 0.5}


def right(name: str, error: dict[str, dict[str, float]]) -> dict[str, bool]:
    public = error["naive"]
    least = {part: TINY[part] * CANCELS.get(name, 1) for part in TINY}
    limits = {"naive": dict.fromkeys(TINY, SANE), "ours": {p: max(FACTOR[p] * public[p], least[p]) for p in TINY}}
    return {form: all(e <= limits[form][part] for part, e in result.items()) for form, result in error.items()}


def contest(name: str, batch: int, student: str = STUDENT, teacher: str = TEACHER) -> Contest:
    """The public form and ours of one method."""
    case = Case(name, batch, student, teacher)
    expected = case.answer()
    sizes = {"method": name, "batch": batch, "student": student, "teacher": teacher}
    forms = {"naive": lambda: Naive(case), "ours": lambda: Ours(case)}
    return Contest(sizes, forms, lambda form: errors(form, expected), partial(right, name), theirs=())


def quick_contests() -> list[Contest]:
    return [contest(name, QUICK) for name in NAIVE]


def main(arguments: list[str]) -> int:
    p = parser("baselines", __doc__, f"batches of {QUICK}")
    p.add_argument("--methods", default=",".join(NAIVE), help="by comma")
    p.add_argument("--batches", type=int, nargs="+", default=[64, 256])
    p.add_argument("--student", default=STUDENT)
    p.add_argument("--teacher", default=TEACHER)
    a = parsed(p, arguments)
    methods = a.methods.split(",")
    if unknown := sorted(set(methods) - set(NAIVE)):
        p.error(f"--methods: expected some of {', '.join(NAIVE)}, got {', '.join(unknown)}")
    cases = [(name, batch) for name in methods for batch in ([QUICK] if a.quick else a.batches)]
    contests = (contest(*case, a.student, a.teacher) for case in cases if case[1] <= LARGEST.get(case[0], case[1]))
    rows, fine = run(contests, a.repeats, a.clock)
    keep("baselines", rows, a)
    return 0 if fine else 1
