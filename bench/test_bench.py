"""`python -m pytest bench`: the cases of `python -m bench --quick` under pytest-benchmark, each behind its gate."""

from __future__ import annotations

import functools

import pytest
import torch

from bench import bank, bank_critics, baselines, batch, critic, ot, ot_providers, step, update
from bench.contest import Contest

pytest.importorskip("pytest_benchmark", reason="pip install pytest-benchmark")
torch.set_num_threads(1)
ROUNDS = {"rounds": 3, "warmup_rounds": 1}
SUBJECTS = {
    "bank": bank,
    "bank_critics": bank_critics,
    "batch": batch,
    "critic": critic,
    "update": update,
    "baselines": baselines,
}


@functools.cache
def contests(subject: str) -> list[Contest]:
    return SUBJECTS[subject].quick_contests()


CASES = [
    pytest.param(subject, number, form, id=f"{subject}-{number}-{form}")
    for subject in SUBJECTS
    for number, contest in enumerate(contests(subject))
    for form in contest.forms
    if form != "compile"  # a compiler's minutes: `python -m bench critic`
]


@pytest.mark.parametrize(("subject", "number", "form"), CASES)
def test_form(benchmark, subject, number, form):
    contest = contests(subject)[number]
    made = {name: contest.forms[name]() for name in dict.fromkeys(("naive", form)) if name in contest.forms}
    right = contest.right({name: contest.errors(one) for name, one in made.items()})
    assert right[form] or form in contest.theirs
    benchmark.group = f"{subject}: {contest.title()}"
    benchmark.extra_info |= {**contest.sizes, "right": right[form]}
    benchmark.pedantic(made[form].step, **ROUNDS)


OT_CASES = [ot_providers.Case(64, solver=solver, eps=eps) for solver, eps in ot.CASES]
OT_FORMS = [name for name in ot_providers.PROVIDERS if "compile" not in name and "JAX" not in name]


@pytest.mark.parametrize("case", OT_CASES, ids=lambda c: f"{c.solver}-{c.eps:g}")
@pytest.mark.parametrize("provider", OT_FORMS)
def test_transport(benchmark, case, provider):
    torch.manual_seed(0)
    x, y = torch.randn(case.n, case.dim), torch.randn(case.n, case.dim)
    calls = ot_providers.PROVIDERS[provider](case, x, y)
    if calls is None:
        pytest.skip("not installed, or not for this solver")
    expected = ot.oracle(case, x, y, calls.value)
    naive = ot_providers.naive_envelope(case, x, y)
    result = {"naive, envelope": ot.errors(naive, naive.gradient(), ot.oracle(case, x, y, "cost"))}
    result[ot.OURS] = ot.errors(calls, calls.gradient(), expected)
    assert ot.passes(result) or not provider.startswith("ours")
    benchmark.group = f"ot: {case.solver} eps {case.eps:g}, n = m = {case.n}, value and gradient"
    benchmark.extra_info |= {**vars(case), "value_error": result[ot.OURS][0]}
    benchmark.pedantic(calls.gradient, **ROUNDS)


@pytest.mark.parametrize("form", ["eager", "channels_last"])
@pytest.mark.parametrize("method", step.QUICK[0].split(","))
def test_driver_step(benchmark, method, form):
    steppers = {
        name: step.stepper(method, name, random_images(), *step.QUICK[1].split(",")) for name in ("eager", form)
    }
    first = {name: stepper.first() for name, stepper in steppers.items()}
    assert first[form] == pytest.approx(first["eager"], rel=step.CLOSE["fp32"])
    benchmark.group = f"step: {method}"
    benchmark.pedantic(steppers[form].step, **ROUNDS)


@functools.cache
def random_images():
    return step.random_images(step.QUICK[2])
