"""batch_infonce and batch_sigmoid against float64 code that is independent of them."""

from __future__ import annotations

import pytest
import torch

from wcord_fast import functional as F
from wcord_fast.ops import dispatch
from wcord_fast.ops.contrast import reference

CRITICS = ("infonce", "sigmoid")
SIZES = [(1, 3), (2, 1), (5, 7), (33, 16), (70, 40)]


def problem(batch, dim, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    x, y = (torch.nn.functional.normalize(torch.randn(batch, dim, generator=g), dim=1).to(dtype) for _ in range(2))
    labels = torch.randint(-1, max(2, batch // 4), (batch,), generator=g)
    index = torch.randint(0, 2 * batch, (batch,), generator=g)
    weight = torch.randn(batch, generator=g).to(dtype)
    return x, y, labels, index, weight


def oracle(critic, x, y, labels, index, scale, bias):
    """Losses in float64, one pair at a time."""
    x, y, batch = x.double(), y.double(), len(x)
    losses = []
    for i in range(batch):
        negatives = [
            j
            for j in range(batch)
            if j != i
            and not (labels is not None and labels[i] >= 0 and labels[i] == labels[j])
            and not (index is not None and index[i] == index[j])
        ]
        own = scale * x[i] @ y[i] + bias
        loss = 0
        for others in (scale * y[negatives] @ x[i] + bias, scale * x[negatives] @ y[i] + bias):
            if critic == "infonce":
                loss = loss + torch.cat([own[None], others]).logsumexp(0) - own
            else:
                loss = loss + torch.nn.functional.softplus(-own) + torch.nn.functional.softplus(others).sum()
        losses.append(loss)
    return torch.stack(losses)


def options(critic, scale=10.0, bias=-4.0):
    return {"temperature": 1 / scale} if critic == "infonce" else {"scale": scale, "bias": bias}


def function(critic):
    return F.batch_infonce if critic == "infonce" else F.batch_sigmoid


def gradients(losses, weight, *inputs):
    return torch.autograd.grad((losses * weight).sum(), inputs)


@pytest.fixture(params=["reference", "native"])
def backend(request):
    rows = [row.backend for row in dispatch.SUPPORT if row.op == "batch" and row.device in ("cpu", "any")]
    if request.param not in rows or dispatch.cannot_run(request.param, "cpu"):
        pytest.skip(f"no {request.param} here")
    return request.param


@pytest.mark.parametrize("batch,dim", SIZES)
@pytest.mark.parametrize("excluded", ["", "labels", "index", "labels index"])
@pytest.mark.parametrize("critic", CRITICS)
def test_values_and_gradients_equal_float64(critic, excluded, batch, dim, backend, monkeypatch):
    monkeypatch.setattr(reference, "CHUNK_BYTES", 1000)
    x, y, labels, index, weight = problem(batch, dim)
    ids = {name: {"labels": labels, "index": index}[name] for name in excluded.split()}
    wide = [t.double().requires_grad_() for t in (x, y)]
    expected = oracle(critic, *wide, ids.get("labels"), ids.get("index"), 10.0, -4.0 if critic == "sigmoid" else 0)
    x, y = x.requires_grad_(), y.requires_grad_()
    losses = function(critic)(x, y, **options(critic), **ids, backend=backend)
    torch.testing.assert_close(losses.double(), expected, rtol=1e-6, atol=1e-6)
    for actual, want in zip(gradients(losses, weight, x, y), gradients(expected, weight.double(), *wide), strict=True):
        assert (actual - want).norm() <= 1e-6 + 1e-5 * want.norm()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("critic", CRITICS)
def test_negative_numbers_of_images_are_numbers(critic, dtype, backend):
    x, y, _, index, _ = problem(12, 5)
    calls = (function(critic)(x, y, index=i.to(dtype), backend=backend) for i in (index % 4, index % 4 - 2))
    torch.testing.assert_close(*calls, rtol=0, atol=0)


@pytest.mark.parametrize("critic", CRITICS)
def test_gradcheck(critic, backend):
    x, y, labels, *_ = problem(6, 5, torch.float64)
    scale, bias = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (3.0, -1.0))
    inputs = (x.requires_grad_(), y.requires_grad_(), *((scale, bias) if critic == "sigmoid" else ()))

    def call(x, y, scale=1.0, bias=0.0):
        more = {"scale": scale, "bias": bias} if critic == "sigmoid" else {"temperature": 0.3}
        return function(critic)(x, y, labels=labels, backend=backend, **more)

    assert torch.autograd.gradcheck(call, inputs)
