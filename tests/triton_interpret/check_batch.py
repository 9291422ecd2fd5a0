"""The Triton kernels of the batch's and the queue's contrast, interpreted on the CPU, against the float64 reference.

tests/test_batch_triton.py runs this file in a process of its own, as tests/test_bank_triton.py does check_bank.py.
"""

from __future__ import annotations

import pytest
import torch

from wcord_fast.functional.batch import batch_infonce, batch_sigmoid
from wcord_fast.ops.bank import triton_launch
from wcord_fast.ops.contrast import op, reference, triton
from wcord_fast.ops.contrast.reference import Contrast

CRITICS = ("infonce", "sigmoid")
FORMS = ("both", "queue", "strip")  # a batch with itself; rows without losses of their own; a part of a joined batch


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """What a kernel does not write stays NaN."""
    original = triton._Strip._scratch
    monkeypatch.setattr(triton._Strip, "_scratch", lambda *a: original(*a).fill_(torch.nan))


def problem(critic, form, batch=5, num_rows=40, dim=12, dtype=torch.float32, row_dtype=None, ids="labels index"):
    """(contrast, weights of the anchors' losses, of the rows')."""
    g = torch.Generator().manual_seed(batch + dim)
    num_rows = batch if form == "both" else num_rows
    rows = torch.nn.functional.normalize(torch.randn(num_rows, dim, generator=g), dim=1).to(row_dtype or dtype)
    anchors, own = torch.nn.functional.normalize(torch.randn(2, batch, dim, generator=g), dim=2).to(dtype)
    first = {"both": 0, "queue": -1, "strip": 3}[form]
    positives = own if first < 0 else rows[first : first + batch]
    label, index = torch.randint(-2, 2, (num_rows,), generator=g), torch.randint(0, 30, (num_rows,), generator=g)
    at = slice(max(first, 0), max(first, 0) + batch)
    given = [t if name in ids else None for name, t in zip(("labels", "index"), (label, index), strict=True)]
    both_ids = [None if t is None else u for t in given for u in ((t[at], t) if t is not None else (t, t))]
    bias = torch.tensor(-4.0) if critic == "sigmoid" else 0.0
    weight, row_weight = torch.randn(batch, generator=g), torch.randn(num_rows, generator=g)
    row_weight = {"both": weight, "queue": None, "strip": row_weight}[form]
    return Contrast(critic, anchors, positives, rows, first, form == "both", 10.0, bias, *both_ids), weight, row_weight


def exact(c):
    return c._replace(anchors=c.anchors.double(), positives=c.positives.double(), rows=c.rows.double())


def totals(c, values):
    """Those of `values`; a strip's rows have totals of losses that another rank knows."""
    generator = torch.Generator().manual_seed(0)
    rows = 10 + torch.rand(len(c.rows), generator=generator, dtype=torch.float64)
    return values.totals if c.both else values.totals._replace(row_total=rows)


def check(c, weight, row_weight, loss_tol=1e-6, grad_tol=1e-5):
    ours, expected = triton.values(c), reference.values(exact(c))
    for mine, theirs in zip(ours, expected, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine.double(), theirs, rtol=loss_tol, atol=loss_tol)
    args = weight.double(), None if row_weight is None else row_weight.double()
    grads = triton.gradients(c, weight, row_weight, totals(c, ours), True, True)
    wanted_grads = reference.gradients(exact(c), *args, totals(c, expected), True, True)
    for mine, theirs in zip(grads, wanted_grads, strict=True):
        assert mine.dtype == torch.float32 and mine.shape == theirs.shape
        assert (mine - theirs).norm() <= grad_tol * (1 + theirs.norm())
    return ours, grads


@pytest.mark.parametrize("ids", ["", "labels", "index", "labels index"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("critic", CRITICS)
def test_values_and_gradients(critic, form, ids):
    check(*problem(critic, form, ids=ids))


@pytest.mark.parametrize("batch, num_rows, dim", [(1, 1, 1), (1, 33, 3), (17, 64, 16), (3, 65, 130)])
@pytest.mark.parametrize("critic", CRITICS)
def test_odd_shapes(critic, batch, num_rows, dim):
    check(*problem(critic, "queue", batch, num_rows, dim, ids=""))


@pytest.mark.parametrize("critic", CRITICS)
def test_a_pair_alone_has_no_negatives(critic):
    values, gradients = check(*problem(critic, "both", 1, dim=5))
    assert critic == "sigmoid" or not (values.value.any() or gradients.anchors.any())


def test_rows_longer_than_any_tile():
    c, *_ = problem("infonce", "queue", 1, 2, 8200)
    torch.testing.assert_close(triton.values(c).value.double(), reference.values(exact(c)).value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "dtype, row_dtype",
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float16),
    ],
)
@pytest.mark.parametrize("critic", CRITICS)
def test_dtypes_against_float64_on_the_rounded_inputs(critic, dtype, row_dtype):
    check(*problem(critic, "both", dtype=dtype, row_dtype=row_dtype))


@pytest.mark.parametrize("precision, tol", [("high", 1e-4), ("medium", 5e-2)])
def test_lower_matmul_precision_is_used_and_bounded(precision, tol):
    case = problem("infonce", "both")
    full, before = triton.values(case[0]).value, torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        low, _ = check(*case, tol, tol)
    finally:
        torch.set_float32_matmul_precision(before)
    assert not torch.equal(full, low.value)


@pytest.mark.parametrize("critic", CRITICS)
def test_splits_join_to_the_whole(critic, monkeypatch):
    case = problem(critic, "queue", num_rows=150)
    grids = []
    launch = triton_launch.launch

    def recorded(kernel, grid, *args, **options):
        grids.append(grid)
        launch(kernel, grid, *args, **options)

    monkeypatch.setattr(triton_launch, "launch", recorded)
    for processors, splits in ((1, 1), (99, 3)):
        monkeypatch.setattr(triton_launch, "processors", lambda device, count=processors: count)
        first, _ = check(*case)
        assert grids[-1] == (1, splits, 1)
        assert torch.equal(triton.values(case[0]).value, first.value)  # the bits repeat


@pytest.mark.parametrize("scale", [0.5, 1e3, 1e5])
@pytest.mark.parametrize("critic", CRITICS)
def test_scores_of_any_size(critic, scale):
    c, weight, row_weight = problem(critic, "both", ids="")
    # A score's rounding is relative to its size.
    check(c._replace(scale=scale), weight, row_weight, 1e-6 * max(1, scale), 1e-5 * max(1, scale / 100))


@pytest.mark.parametrize("needs", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_needed_is_empty_and_the_rest_has_equal_bits(form, needs):
    c, weight, row_weight = problem("sigmoid", form)
    known = totals(c, triton.values(c))
    whole = triton.gradients(c, weight, row_weight, known, True, True)
    some = triton.gradients(c, weight, row_weight, known, *needs)
    for name, needed in zip(("anchors", "positives"), needs, strict=True):
        ours = getattr(some, name)
        assert torch.equal(ours, getattr(whole, name)) if needed else ours.numel() == 0
    torch.testing.assert_close(some.bias, whole.bias)


def test_strided_rows_and_narrow_ids():
    c, *_ = problem("infonce", "queue")
    wide = torch.zeros(40, 20)
    wide[:, :12] = c.rows
    ids = [None if t is None else t.to(torch.int16) for t in c[8:]]
    expected = triton.values(c).value
    for rows in (wide[:, :12], c.rows.T.contiguous().T):
        strided = c._replace(anchors=c.anchors.T.contiguous().T, rows=rows)
        strided = strided._replace(anchor_label=ids[0], row_label=ids[1], anchor_index=ids[2], row_index=ids[3])
        assert torch.equal(triton.values(strided).value, expected)


@pytest.mark.parametrize("function", [batch_infonce, batch_sigmoid])
def test_public_functions_with_trained_scalars(function, monkeypatch):
    """Autograd, the mean and the scalars' gradients, with the kernels in the reference's place."""
    torch.manual_seed(0)
    scalars = [torch.tensor(v, requires_grad=True) for v in (8.0, -3.0)] if function is batch_sigmoid else []
    more = dict(zip(("scale", "bias"), scalars, strict=False))
    x, y = (torch.nn.functional.normalize(torch.randn(6, 5), dim=1).requires_grad_() for _ in range(2))

    def step():
        losses = function(x, y, labels=torch.arange(6) // 2, backend="reference", **more)
        return losses, *torch.autograd.grad((losses * torch.arange(6)).sum(), (x, y, *scalars))

    expected = step()
    monkeypatch.setitem(op._MODULES, "reference", triton)
    results = step()
    assert not all(map(torch.equal, results, expected))  # the kernels ran
    for ours, theirs in zip(results, expected, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * (1 + theirs.norm())
