"""The contrast ops as registered ops: opcheck, torch.compile, autocast, dtypes, strides; and refused inputs."""

from __future__ import annotations

import pytest
import torch

import wcord_fast
from wcord_fast import functional as F
from wcord_fast.ops import dispatch
from wcord_fast.ops.contrast import op
from wcord_fast.ops.contrast.reference import Contrast

from .test_batch_functions import CRITICS, backend, function, gradients, options, problem  # noqa: F401

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
NARROW = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("both", [True, False])
def test_opcheck(critic, both):
    x, y, labels, _, weight = problem(9, 5)
    scalars = torch.tensor(3.0), torch.tensor(0.0)
    c = Contrast(critic, x, y, y, 0 if both else -1, both, *scalars, labels, labels, None, None)
    torch.library.opcheck(op.values_op, (*c, "auto"), test_utils=CHECKS)
    known = op.values_op(*c, "auto")
    for needs in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(
            op.gradients_op, (*c, weight, weight if both else None, *known[1:], *needs, "auto"), test_utils=CHECKS
        )


@pytest.mark.parametrize("needed", ["x", "y", "scale", "bias"])
@pytest.mark.parametrize("critic", CRITICS)
def test_gradient_of_one_input_does_not_depend_on_the_other_requiring_grad(critic, needed, backend):  # noqa: F811
    if critic == "infonce" and needed in ("scale", "bias"):
        pytest.skip("numbers there")
    x, y, labels, _, weight = problem(13, 5)
    inputs = {"x": x, "y": y}
    if critic == "sigmoid":
        inputs |= {"scale": torch.tensor(3.0), "bias": torch.tensor(-1.0)}

    def gradient(*names):
        leaves = {name: t.clone().requires_grad_(name in names) for name, t in inputs.items()}
        losses = function(critic)(**leaves, labels=labels, backend=backend)
        return dict(zip(names, gradients(losses, weight, *(leaves[name] for name in names)), strict=True))

    assert torch.equal(gradient(needed)[needed], gradient(*inputs)[needed])


@pytest.mark.parametrize("critic", CRITICS)
def test_compiles_without_graph_breaks(critic):
    x, y, labels, index, weight = problem(9, 5)
    x, y = x.requires_grad_(), y.requires_grad_()
    scale = torch.tensor(2.0, requires_grad=True)

    def call(x, y, scale):
        more = {"scale": scale} if critic == "sigmoid" else {}
        return function(critic)(x * scale, y, labels=labels, index=index, **more)

    eager = call(x, y, scale)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")(x, y, scale)
    torch.testing.assert_close(compiled, eager)
    for a, b in zip(gradients(compiled, weight, x, y, scale), gradients(eager, weight, x, y, scale), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("critic", CRITICS)
def test_autocast_does_not_round_inside(critic):
    x, y, *_ = problem(9, 5)
    plain = function(critic)(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(function(critic)(x, y), plain)


@pytest.mark.parametrize("dtypes", [(a, b) for a in (*NARROW, torch.float32, torch.float64) for b in NARROW])
@pytest.mark.parametrize("critic", CRITICS)
def test_narrow_inputs_equal_their_widened_values(critic, dtypes, backend):  # noqa: F811
    x, y, labels, _, weight = problem(20, 9)
    x, y = x.to(dtypes[0]).requires_grad_(), y.to(dtypes[1]).requires_grad_()
    wide = torch.float64 if torch.float64 in dtypes else torch.float32
    wide_x, wide_y = (t.detach().to(wide).requires_grad_() for t in (x, y))
    call = {"labels": labels, "backend": backend, **options(critic)}
    losses, expected = function(critic)(x, y, **call), function(critic)(wide_x, wide_y, **call)
    assert losses.dtype == wide and torch.equal(losses, expected)
    for actual, want in zip(gradients(losses, weight, x, y), gradients(expected, weight, wide_x, wide_y), strict=True):
        assert torch.equal(actual, want.to(actual.dtype))


@pytest.mark.parametrize("critic", CRITICS)
def test_strides_of_inputs_and_of_the_output_s_gradient_do_not_matter(critic, backend):  # noqa: F811
    x, y, labels, index, weight = problem(17, 9)
    call = {**options(critic), "backend": backend}
    losses = function(critic)(x.requires_grad_(), y.requires_grad_(), labels=labels, index=index, **call)
    strange_x = x.detach().T.contiguous().T.requires_grad_()
    strange_y = torch.stack([y.detach(), -y.detach()], 2)[..., 0].requires_grad_()
    ids = {"labels": labels.repeat_interleave(2)[::2], "index": index.int().repeat_interleave(2)[::2]}
    strange = function(critic)(strange_x, strange_y, **ids, **call)
    assert torch.equal(losses, strange)
    summed = function(critic)(x, y, labels=labels, index=index, **call).sum()  # hands down an expanded gradient
    ones = torch.ones(17)
    for expected, weights in (
        (gradients(losses, weight, x, y), (weight, weight.repeat_interleave(2)[::2])),
        (torch.autograd.grad(summed, (x, y)), (ones, ones[:1].expand(17))),
    ):
        for handed in weights:
            actual = torch.autograd.grad(strange, (strange_x, strange_y), handed, retain_graph=True)
            assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("critic", CRITICS)
def test_one_tensor_as_both_inputs_gets_the_sum_of_both_gradients(critic, backend):  # noqa: F811
    x, _, _, _, weight = problem(7, 5)
    call = {**options(critic), "backend": backend}
    x = x.requires_grad_()
    (both,) = gradients(function(critic)(x, x, **call), weight, x)
    twin = x.detach().clone().requires_grad_()
    separate = gradients(function(critic)(x, twin, **call), weight, x, twin)
    torch.testing.assert_close(both, separate[0] + separate[1])


@pytest.mark.parametrize("critic", CRITICS)
def test_losses_may_be_written_to(critic, backend):  # noqa: F811
    x, y, *_ = problem(7, 5)
    losses = function(critic)(x.requires_grad_(), y, backend=backend)
    (expected,) = torch.autograd.grad((2 * losses).sum(), x, retain_graph=True)
    assert torch.equal(torch.autograd.grad(losses.mul_(2).sum(), x)[0], expected)


@pytest.mark.parametrize("name", ["x", "y"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("critic", CRITICS)
def test_a_row_that_is_not_finite_is_named(critic, value, name, backend):  # noqa: F811
    sides = dict(zip("xy", problem(50, 19)[:2], strict=True))
    sides[name][41, 17] = value
    with pytest.raises(ValueError, match=f"{name}: row 41 holds {value}"):
        function(critic)(**sides, backend=backend)


def test_wrong_arguments_are_named():
    x, y, labels, *_ = problem(4, 3)
    for wrong, error, argument in (
        ({"y": y[:3]}, ValueError, "y: expected shape"),
        ({"x": x.long()}, TypeError, "x: expected dtype"),
        ({"x": x[:0], "y": y[:0]}, ValueError, "x: expected shape"),
        ({"labels": labels[:2]}, ValueError, "labels: expected shape"),
        ({"index": labels.float()}, TypeError, "index: expected dtype"),
        ({"temperature": 0.0}, ValueError, "temperature"),
        ({"temperature": "0.1"}, TypeError, "temperature"),
        ({"scope": "all"}, ValueError, "scope"),
        ({"backend": "cuda"}, ValueError, "backend"),
        ({"backend": "triton"}, NotImplementedError, "backend='triton': batch"),
    ):
        with pytest.raises(error, match=argument):
            F.batch_infonce(**{"x": x, "y": y, **wrong})
    for wrong, error, argument in (
        ({"scale": torch.ones(2)}, ValueError, "scale: expected shape"),
        ({"scale": torch.tensor(1)}, TypeError, "scale: expected dtype"),
        ({"bias": float("nan")}, ValueError, "bias"),
        ({"bias": torch.tensor(torch.inf)}, ValueError, "bias: holds inf"),
        ({"bias": None}, TypeError, "bias"),
    ):
        with pytest.raises(error, match=argument):
            F.batch_sigmoid(x, y, **wrong)


@pytest.mark.parametrize("critic", CRITICS)
def test_extreme_scores_neither_overflow_nor_vanish(critic, backend):  # noqa: F811
    x, y, *_ = problem(12, 5)
    x, y = (1e3 * x).requires_grad_(), (1e3 * y).requires_grad_()
    losses = function(critic)(x, y, **({} if critic == "infonce" else {"scale": 1e3}), backend=backend)
    assert torch.isfinite(losses).all()
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(losses.sum(), (x, y)))


def test_explain_names_the_backend():
    assert wcord_fast.explain("batch_infonce", backend="reference").backend == "reference"
    cuda = wcord_fast.explain("batch_sigmoid", device="cuda")
    assert (cuda.backend, cuda.op) == ("reference", "batch")
    if "native" in [row.backend for row in dispatch.SUPPORT if row.op == "batch"]:
        assert wcord_fast.explain("batch_infonce").backend == "native"
