"""A tol that was not reached is a warning, once per line of the caller, with the error and the iterations."""

from __future__ import annotations

import warnings

import pytest
import torch

import wcord_fast
from wcord_fast import OTLoss
from wcord_fast import functional as F
from wcord_fast.ops import status
from wcord_fast.ops.sinkhorn import unreached
from wcord_fast.ops.sinkhorn.reference import SolveOptions, SolveResult

pytestmark = pytest.mark.usefixtures("each_ot_backend")

HARD = {"cost": "sqeuclidean", "solver": "sinkhorn", "eps": 0.01, "iters": 30, "tol": 1e-4}


def problem(*batch):
    g = torch.Generator().manual_seed(0)
    return torch.randn(*batch, 24, 5, generator=g), torch.randn(*batch, 20, 5, generator=g) + 0.5


def collected(call):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        value = call()
    return value, [w for w in seen if "tol" in str(w.message)]


@pytest.mark.parametrize("call", [F.ot_cost, F.ot_solve, F.ot_plan, lambda x, y, **k: OTLoss(**k)(x, y)])
@pytest.mark.parametrize("grad", [False, True])
def test_every_function_names_the_error_and_the_iterations(call, grad):
    x, y = problem()
    error = F.ot_solve(x, y, **HARD | {"tol": None}).marginal_error
    _, seen = collected(lambda: call(x.requires_grad_(grad), y, **HARD))
    (one,) = seen
    assert f"tol = 0.0001 was not reached: the marginal error is {error:.3g} after 30 iterations" in str(one.message)
    assert "eps=0.01" in str(one.message) and one.category is UserWarning
    assert one.filename == __file__


MATRIX = {"eps": 0.01, "iters": 30, "tol": 1e-4}


@pytest.mark.parametrize("call", [F.ot_cost_from_matrix, F.ot_solve_from_matrix, F.ot_plan_from_matrix])
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_functions_for_a_given_cost_warn_too(call, own):
    g = torch.Generator().manual_seed(1)
    c = torch.rand(*([2] if own else []), 9, 7, generator=g).requires_grad_()
    a = torch.rand(2, 9, generator=g).softmax(1)
    a[1] = torch.eye(9)[0]  # one row has all mass: exact after an iteration
    errors = F.ot_solve_from_matrix(c, a, **MATRIX | {"tol": None}).marginal_error
    _, (one,) = collected(lambda: call(c, a, **MATRIX))
    assert f"in 1 of 2 problems: the marginal error is {errors[0]:.3g} after 30 iterations" in str(one.message)
    assert one.filename == __file__
    assert not collected(lambda: call(c, a, **MATRIX | {"tol": 0.5}))[1]


def test_warning_comes_once_per_calling_line():
    x, y = problem()

    def three():
        for shift in range(3):
            F.ot_cost(x + shift, y, **HARD)
        OTLoss(**HARD)(x, y)
        OTLoss(**HARD)(x, y)

    _, seen = collected(three)
    assert len(seen) == 3 and len({w.lineno for w in seen}) == 3
    assert len(collected(three)[1]) == 3  # other filters: it warns again
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):  # one line, and an error each time
            with pytest.raises(UserWarning, match=r"tol = 0\.0001 was not reached"):
                F.ot_cost(x, y, **HARD)


def test_the_problems_of_a_batch_are_counted():
    x, y = problem(3)
    x[1] = y[1, :1]
    x[2] = y[2, :1]  # all rows of x are one point: any plan with the right columns is exact
    solved, (one,) = collected(lambda: F.ot_solve(x, y, **HARD))
    assert solved.marginal_error[1:].max() <= 1e-4
    assert f"in 1 of 3 problems: the marginal error is {solved.marginal_error[0]:.3g}" in str(one.message)


def test_no_warning_if_tol_was_reached_or_not_given():
    x, y = problem()
    easy = HARD | {"eps": 2.0}
    solved, seen = collected(lambda: F.ot_solve(x, y, **easy))
    assert solved.marginal_error <= 1e-4 and not seen
    assert not collected(lambda: F.ot_solve(x, y, **HARD | {"tol": None}))[1]
    at_last = F.ot_solve(x, y, **HARD | {"tol": None}).marginal_error.item() * 1.001
    solved, seen = collected(lambda: F.ot_solve(x, y, **HARD | {"tol": at_last, "iters": 30}))
    assert solved.iterations == 30 and not seen  # by the last iteration


def test_self_terms_of_the_debiased_cost_warn_too():
    y = problem()[1].double()
    x, options = y[:1].expand(6, -1), HARD | {"eps": 1.0, "iters": 10, "tol": 1e-9}
    assert not collected(lambda: F.ot_cost(x, y, **options))[1]  # all rows of x are one point
    assert len(collected(lambda: F.ot_cost(x, y, debias=True, **options))[1]) == 1


def test_compiled_code_warns_when_it_runs():
    x, y = problem()
    step = torch.compile(lambda x, y: F.ot_cost(x, y, **HARD), fullgraph=True, backend="aot_eager")
    value, seen = collected(lambda: step(x, y))
    assert len(seen) == 1
    torch.testing.assert_close(value, F.ot_cost(x, y, **HARD | {"tol": None}))


def test_on_a_device_check_warns_of_the_worst(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(status, "_unreached", {})
    wcord_fast.check()
    for error, iters in ((0.25, 50), (0.5, 20), (0.125, 30), (0.0, 9)):
        status.note_unreached(torch.tensor(error), iters)
    message = "on cpu: .*tol .* not reached: the marginal error is 0.5 after 20 iterations"
    with pytest.warns(UserWarning, match=message) as seen:
        wcord_fast.check()
    assert seen[0].filename == __file__
    assert not collected(wcord_fast.check)[1]  # reported and cleared
    with torch.inference_mode():
        status.note_unreached(torch.tensor(0.5), 7)
    status.note_unreached(torch.tensor(0.75), 8)
    assert len(collected(lambda: wcord_fast.check(cpu))[1]) == 1


def test_worst_error_counts_unreached_problems_only():
    options = SolveOptions("cosine", "ipot", 0.5, 40, 0.1, "cost", False, False, False, False)
    for errors, expected in (([0.3, 0.2, 0.05], 0.2), ([0.3, 0.1, 0.05], 0.0), ([0.3, float("nan"), 0.4], 0.4)):
        solved = SolveResult(
            *[None] * 4, torch.tensor(errors), torch.tensor([20, 40, 40]), *[None] * 4
        )  # the first stopped
        assert unreached.worst(solved, options) == pytest.approx(expected)
