"""Bad input: the message names the argument, its value and what was expected; nothing is changed."""

import math

import pytest
import torch

from tests import ot_oracles as oracle
from wcord_fast import functional as F
from wcord_fast.ops import status
from wcord_fast.ops.sinkhorn import reference

X, Y = oracle.features(0, 4, 3, dtype=torch.float32), oracle.features(1, 5, 3, dtype=torch.float32)
BX, BY = oracle.features(2, 2, 4, 3, dtype=torch.float32), oracle.features(3, 2, 5, 3, dtype=torch.float32)


def mass(*values):
    return torch.tensor(values, dtype=torch.float32)


def changed(t, at, value):
    t = t.clone()
    t[at] = value
    return t


BAD = {  # name: (x, y, options, exception, pattern)
    "not a tensor": (X.numpy(), Y, {}, TypeError, r"x: .*Tensor.*ndarray"),
    "y not a tensor": (X, None, {}, TypeError, r"y: .*Tensor.*NoneType"),
    "one dimension": (X[0], Y, {}, ValueError, r"x: .*\[n, d\] or \[G, n, d\].*\[3\]"),
    "y one dimension": (X, Y[0], {}, ValueError, r"y: expected shape"),
    "widths differ": (X, Y[:, :2], {}, ValueError, r"y: .*\[m, 3\].*\[5, 2\]"),
    "batched and not": (BX, Y, {}, ValueError, r"y: .*\[2, m, 3\].*\[5, 3\]"),
    "batch sizes differ": (BX, BY[:1], {}, ValueError, r"y: .*\[2, m, 3\].*\[1, 5, 3\]"),
    "empty x": (X[:0], Y, {}, ValueError, r"x: .*at least 1.*\[0, 3\]"),
    "empty y": (X, Y[:0], {}, ValueError, r"y: .*at least 1.*\[0, 3\]"),
    "no width": (X[:, :0], Y[:, :0], {}, ValueError, r"x: .*at least 1.*\[4, 0\]"),
    "empty batch": (BX[:0], BY[:0], {}, ValueError, r"x: .*at least 1.*\[0, 4, 3\]"),
    "integers": (X.long(), Y, {}, TypeError, r"x: .*int64"),
    "integers in y": (X, Y.int(), {}, TypeError, r"y: expected dtype float16.*got int32"),
    "sparse": (X.to_sparse(), Y, {}, TypeError, r"x: .*dense"),
    "devices differ": (X, Y.to("meta"), {}, ValueError, r"y is on meta but x is on cpu"),
    "a of wrong length": (X, Y, {"a": mass(0.5, 0.5)}, ValueError, r"a: .*\[4\].*\[2\]"),
    "b of wrong length": (X, Y, {"b": mass(0.5, 0.5)}, ValueError, r"b: .*\[5\].*\[2\]"),
    "a batched, x not": (X, Y, {"a": torch.full((2, 4), 0.25)}, ValueError, r"a: .*\[4\].*\[2, 4\]"),
    "a of wrong batch": (BX, BY, {"a": torch.full((3, 4), 0.25)}, ValueError, r"a: .*\[2, 4\].*\[3, 4\]"),
    "a of wrong dtype": (X, Y, {"a": torch.ones(4, dtype=torch.int64)}, TypeError, r"a: .*float32.*int64"),
    "b a list": (X, Y, {"b": [0.2] * 5}, TypeError, r"b: .*Tensor.*list"),
    "a on another device": (
        X,
        Y,
        {"a": torch.ones(4, device="meta")},
        ValueError,
        r"a is on meta but x is on cpu",
    ),
    "unknown cost": (X, Y, {"cost": "cosin"}, ValueError, r"cost: .*'cosin'; did you mean 'cosine'"),
    "unknown solver": (
        X,
        Y,
        {"solver": "sinkorn"},
        ValueError,
        r"solver: .*'sinkorn'; did you mean 'sinkhorn'",
    ),
    "unknown value": (X, Y, {"value": "duel"}, ValueError, r"value: .*'duel'; did you mean 'dual'"),
    "unknown backend": (X, Y, {"backend": "natve"}, ValueError, r"backend: .*did you mean 'native'"),
    "dual of ipot": (X, Y, {"value": "dual"}, ValueError, r"value='dual': .*'sinkhorn'.*'ipot'"),
    "eps zero": (X, Y, {"eps": 0.0}, ValueError, r"eps: .*positive.*0\.0"),
    "eps negative": (X, Y, {"eps": -0.1}, ValueError, r"eps: .*positive.*-0\.1"),
    "eps nan": (X, Y, {"eps": math.nan}, ValueError, r"eps: .*nan"),
    "eps a string": (X, Y, {"eps": "0.1"}, TypeError, r"eps: .*number"),
    "no iterations": (X, Y, {"iters": 0}, ValueError, r"iters: .*at least 1.*0"),
    "half an iteration": (X, Y, {"iters": 1.5}, TypeError, r"iters: .*int.*1\.5"),
    "iters a bool": (X, Y, {"iters": True}, TypeError, r"iters: .*int.*True"),
    "rho a string": (X, Y, {"rho": "x"}, TypeError, r"rho: .*number.*'x'"),
    "rho above 1": (X, Y, {"rho": 7}, ValueError, r"rho: .*\[0, 1\].*7"),
    "rho 1": (X, Y, {"rho": 1}, ValueError, r"rho: .*\[0, 1\), got 1"),
    "debias a string": (X, Y, {"debias": "no"}, TypeError, r"debias: .*'no'"),
    "tol zero": (X, Y, {"tol": 0.0}, ValueError, r"tol: .*positive.*0\.0"),
    "nan in x": (changed(X, (2, 1), math.nan), Y, {}, ValueError, r"x: row 2 holds NaN or inf"),
    "inf in y": (X, changed(Y, (4, 0), -math.inf), {}, ValueError, r"y: row 4 holds NaN or inf"),
    "nan in a batch": (
        BX,
        changed(BY, (1, 3, 0), math.nan),
        {},
        ValueError,
        r"y: row 3 of problem 1 holds NaN",
    ),
    "zero row of x": (changed(X, 3, 0.0), Y, {}, ValueError, r"x: row 3 is zero.*cosine"),
    "zero row of y": (X, changed(Y, 0, 0.0), {}, ValueError, r"y: row 0 is zero.*cosine"),
    "a negative": (X, Y, {"a": mass(0.5, 0.6, -0.1, 0.0)}, ValueError, r"a: entry 2 is -0\.1.*>= 0"),
    "b nan": (X, Y, {"b": mass(0.2, math.nan, 0.2, 0.2, 0.2)}, ValueError, r"b: entry 1 is nan"),
    "b inf": (X, Y, {"b": mass(0.2, 0.2, 0.2, 0.2, math.inf)}, ValueError, r"b: entry 4 is inf"),
    "a of wrong sum": (X, Y, {"a": mass(0.2, 0.2, 0.2, 0.2)}, ValueError, r"a: .*sum 1.*0\.8"),
    "b of no mass": (X, Y, {"b": torch.zeros(5)}, ValueError, r"b: .*sum 1.*sum 0"),
    "second problem": (
        BX,
        BY,
        {"a": torch.tensor([[0.25] * 4, [0.25, 0.25, 0.25, 0.26]])},
        ValueError,
        r"a: .*sum 1\.01 in problem 1",
    ),
}


@pytest.mark.usefixtures("each_ot_backend")
@pytest.mark.parametrize("function", [F.ot_cost, F.ot_plan, F.ot_solve])
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name, function):
    x, y, options, error, pattern = BAD[name]
    with pytest.raises(error, match=pattern):
        function(x, y, **options)


def test_values_are_checked_before_any_work(monkeypatch):
    monkeypatch.setattr(reference, "cost_matrix", lambda *_: pytest.fail("work began before the checks"))
    for name in ("inf in y", "b inf", "b of no mass", "zero row of y"):
        x, y, options, error, pattern = BAD[name]
        with pytest.raises(error, match=pattern):
            F.ot_cost(x, y, backend="reference", **options)


@pytest.mark.parametrize("name", ["a", "b"])
def test_gradient_of_masses_needs_the_dual_value(name):
    weights = {name: torch.full((4 if name == "a" else 5,), 0.25 if name == "a" else 0.2, requires_grad=True)}
    with pytest.raises(NotImplementedError, match=rf"{name} requires grad.*value='dual'"):
        F.ot_cost(X, Y, **weights)
    with torch.no_grad():
        assert F.ot_cost(X, Y, **weights).isfinite()
    assert not F.ot_plan(X, Y, **weights).requires_grad


@pytest.mark.parametrize("function", [F.ot_cost, F.ot_plan, F.ot_solve])
@pytest.mark.parametrize(
    "options", [{"cost": "euclidean"}, {"cost": "sqeuclidean"}, {"cost": "sqeuclidean", "reach": 1.0}]
)
def test_features_that_overflow_the_cost_are_named(options, function):
    with pytest.raises(ValueError, match=r"x: values up to .* overflow"):
        function(X * 1e25, Y, solver="sinkhorn", **options)


def test_a_backend_without_a_row_in_the_table_is_refused():
    with pytest.raises(NotImplementedError, match="support table"):
        F.ot_cost(X, Y, backend="triton")


def test_sums_within_the_tolerance_and_half_masses_are_accepted():
    assert F.ot_cost(X, Y, a=mass(0.25, 0.25, 0.25, 0.25005)).isfinite()
    half = F.ot_cost(X.half(), Y.half(), a=torch.full((4,), 0.25, dtype=torch.float16))
    assert torch.equal(half, F.ot_cost(X.half(), Y.half(), a=torch.full((4,), 0.25)))


FLAGGED = [  # values in problem 1 of 3 that a device flags, where nothing is raised
    ("x", lambda t: t[1, 2].fill_(math.nan), status.Code.OT_INPUT),
    ("y", lambda t: t[1, 0].fill_(math.inf), status.Code.OT_INPUT),
    ("x", lambda t: t[1, 3].zero_(), status.Code.ZERO_ROW),
    ("y", lambda t: t[1, 4].zero_(), status.Code.ZERO_ROW),
    ("a", lambda t: t[1, 0].neg_(), status.Code.MARGINAL),
    ("b", lambda t: t[1].mul_(0.5), status.Code.MARGINAL),
    ("b", lambda t: t[1].zero_(), status.Code.MARGINAL),
]


@pytest.mark.parametrize(("name", "spoil", "code"), FLAGGED)
def test_a_flagged_problem_is_nan_and_leaves_the_others_alone(monkeypatch, name, spoil, code):
    """The device path, step by step on the CPU: flag without raising, solve, mask."""
    inputs = {
        "x": oracle.features(4, 3, 4, 3),
        "y": oracle.features(5, 3, 5, 3),
        "a": oracle.masses(6, 3, 4),
        "b": oracle.masses(7, 3, 5),
    }

    def solve():
        raised = []
        monkeypatch.setattr(status, "guard", lambda bad, code, _: raised.append(code) if bad.any() else None)
        bad = reference.flag_inputs(*inputs.values(), "cosine")
        options = reference.SolveOptions("cosine", "ipot", 0.5, 20, 1e-9, "cost", True, True, False, False)
        solved = reference.ot_solve(*inputs.values(), options)
        return bad, reference.poison(bad, solved), raised

    bad, clean, raised = solve()
    assert not bad.any() and not raised
    spoil(inputs[name])
    bad, solved, raised = solve()
    assert bad.tolist() == [False, True, False] and set(raised) == {code}
    for ours, want in zip(solved, clean, strict=True):
        if ours.is_floating_point() and ours.numel():
            assert ours[1].isnan().all()
            assert torch.equal(ours[[0, 2]], want[[0, 2]])
    assert torch.equal(solved.iterations[[0, 2]], clean.iterations[[0, 2]])
