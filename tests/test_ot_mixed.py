"""Features and masses of different dtypes are promoted; each gradient has the dtype of its input."""

from __future__ import annotations

import itertools

import pytest
import torch

from wcord_fast import OTLoss
from wcord_fast import functional as F

pytestmark = pytest.mark.usefixtures("each_ot_backend")

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MIXED = list(itertools.permutations(DTYPES, 2))
OPTIONS = {
    "cosine": {"iters": 20},
    "sqeuclidean": {"cost": "sqeuclidean", "solver": "sinkhorn", "eps": 0.5, "iters": 20},
}


def problem(dtype_x, dtype_y, *batch):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(*batch, 9, 4, generator=g), torch.randn(*batch, 7, 4, generator=g) + 0.3
    return x.to(dtype_x).requires_grad_(), y.to(dtype_y).requires_grad_()


def exact(tensor):
    """A leaf with the values of `tensor` in float64; None for None."""
    return None if tensor is None else tensor.detach().double().requires_grad_(tensor.requires_grad)


def assert_rounded(ours, want, factor=4):
    """`ours` is `want` to the rounding of its own dtype, or of the fp32 arithmetic where that is coarser."""
    bound = factor * max(torch.finfo(ours.dtype).eps, torch.finfo(torch.float32).eps * 16) * want.abs().max()
    assert (ours.double() - want).abs().max() <= bound


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(("dtype_x", "dtype_y"), MIXED)
@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("debias", [False, True])
def test_values_and_gradients_against_float64(dtype_x, dtype_y, batch, options, debias):
    x, y = problem(dtype_x, dtype_y, *batch)
    wide = torch.promote_types(torch.promote_types(dtype_x, dtype_y), torch.float32)
    px, py = exact(x), exact(y)
    ours, want = (F.ot_cost(*pair, debias=debias, **options) for pair in ((x, y), (px, py)))
    assert ours.dtype is wide
    torch.testing.assert_close(ours.double(), want, rtol=1e-5 if wide is torch.float32 else 1e-12, atol=1e-5)
    ours.sum().backward()
    want.sum().backward()
    assert x.grad.dtype is dtype_x and y.grad.dtype is dtype_y
    assert_rounded(x.grad, px.grad)
    assert_rounded(y.grad, py.grad)
    plan, wanted = F.ot_plan(x, y, **options), F.ot_plan(px, py, **options)
    assert plan.dtype is wide
    torch.testing.assert_close(plan.double(), wanted, rtol=1e-4, atol=1e-6)
    for actual, right in zip(F.ot_solve(x, y, **options)[1:4], F.ot_solve(px, py, **options)[1:4], strict=True):
        assert actual.dtype is wide
        torch.testing.assert_close(actual.double(), right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtypes", list(itertools.product(DTYPES[1:], repeat=4))[1::7])
def test_masses_of_every_dtype(dtypes):
    x, y = problem(*dtypes[:2])
    a = (torch.arange(9) + 1.0).div(45).to(dtypes[2]).requires_grad_()
    b = (torch.arange(7) % 3 + 1.0).div(13).to(dtypes[3]).requires_grad_()
    options = {"solver": "sinkhorn", "eps": 0.3, "value": "dual", "iters": 40}
    ours = F.ot_cost(x, y, a=a, b=b, **options)
    assert ours.dtype is (torch.float64 if torch.float64 in dtypes else torch.float32)
    wide = [exact(t) for t in (x, y, a, b)]
    total = [t.detach().sum() if t.dtype.itemsize > 2 else t.detach().double().sum() for t in (a, b)]
    masses = [w / s if t.dtype.itemsize == 2 else w for w, t, s in zip(wide[2:], (a, b), total, strict=True)]
    want = F.ot_cost(*wide[:2], a=masses[0], b=masses[1], **options)
    torch.testing.assert_close(ours.double(), want, rtol=1e-5, atol=1e-6)
    ours.backward()
    want.backward()
    for leaf, right in zip((x, y, a, b), wide, strict=True):
        assert leaf.grad.dtype is leaf.dtype
        assert_rounded(leaf.grad, right.grad, factor=16)


def test_autocast_does_not_change_the_result():
    x, y = problem(torch.bfloat16, torch.float32)
    plain = F.ot_cost(x, y, iters=20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer = torch.nn.Linear(4, 4, bias=False)
        assert torch.equal(F.ot_cost(x, y, iters=20), plain)
        h = layer(y)  # bf16, as a network's features under autocast are
        assert h.dtype is torch.bfloat16
        loss = OTLoss(iters=20)(h, y)
    loss.backward()
    assert loss.dtype is torch.float32 and layer.weight.grad.dtype is torch.float32
    torch.testing.assert_close(loss, OTLoss(iters=20)(h.float(), y))


def test_one_loss_accepts_any_pair_of_dtypes():
    x, y = problem(torch.float32, torch.bfloat16)
    assert torch.equal(OTLoss()(x, y), F.ot_cost(x, y.float()))
    x, y = problem(torch.bfloat16, torch.bfloat16)
    fp32 = torch.full((9,), 1 / 9)
    assert F.ot_plan(x, y, a=fp32).dtype is torch.float32
    assert torch.equal(F.ot_cost(x, y, a=fp32), F.ot_cost(x.float(), y.float(), a=fp32))


def test_mixed_dtypes_compile():
    x, y = problem(torch.bfloat16, torch.float32)
    step = torch.compile(lambda x, y: F.ot_cost(x, y, iters=20), fullgraph=True, backend="aot_eager")
    value = step(x, y)
    assert torch.equal(value, F.ot_cost(x, y, iters=20))
    assert [g.dtype for g in torch.autograd.grad(value, (x, y))] == [torch.bfloat16, torch.float32]
