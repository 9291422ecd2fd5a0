"""The dense Triton plan on a device against the float64 reference there: samplers, dtypes, graphs, determinism."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from wcord_fast import NegativeSampler
from wcord_fast.ops.bank import reference, triton, triton_launch
from wcord_fast.ops.bank.part import Part
from wcord_fast.ops.sampling.spec import DrawSpec

pytestmark = pytest.mark.gpu

N, B, TAU = 5003, 70, 0.07
LABELS = torch.arange(N) % 10
UNEVEN = (torch.arange(N).double().sqrt() % 7).long()
SAMPLERS = {
    "none": {"k": 700, "exclude": "none"},
    "self": {"k": 700, "exclude": "self"},
    "class": {"k": 700, "labels": LABELS},
    "replacement": {"k": 70000, "labels": LABELS, "replacement": True},
    "weights": {"k": 700, "weights": torch.arange(N)},
    "all": {"k": "all", "exclude": "none"},
    "all_self": {"k": "all", "exclude": "self"},
    "all_class": {"k": "all", "labels": UNEVEN},
    "expected": {"k": 700, "labels": UNEVEN, "expected": True},
}


@pytest.fixture(autouse=True)
def runnable():
    from wcord_fast.ops import triton_module

    why = triton_module.unavailable_reason("cuda")
    if why:
        pytest.skip(why)


def spec_of(name, num_data=N):
    return NegativeSampler(num_data, seed=11, **SAMPLERS[name]).cuda().spec(3)


def problem(directions=2, batch=B, num_data=N, dim=128, dtype=torch.float32, bank_dtype=torch.float32):
    g = torch.Generator().manual_seed(batch + dim)
    anchors = torch.nn.functional.normalize(torch.randn(directions, batch, dim, generator=g), dim=-1)
    rows = torch.nn.functional.normalize(torch.randn(directions, num_data, dim, generator=g), dim=-1)
    index = torch.randint(0, num_data, (batch,), generator=g).cuda()
    log_z = torch.linspace(8.0, 9.0, directions, device="cuda")
    return anchors.cuda().to(dtype), list(rows.cuda().to(bank_dtype)), index, log_z


def exact(anchors, banks):
    return anchors.double(), [bank.double() for bank in banks]


def error(ours, expected):
    """Largest relative error of a row."""
    return float(((ours - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


def check(anchors, banks, index, log_z, spec, loss_tol=1e-6, grad_tol=1e-5):
    loss, grad = triton.bank_nce(anchors, banks, index, log_z, spec, TAU, True, "dense", "auto")
    x, rows = exact(anchors, banks)
    expected = reference.bank_nce(x, rows, index, log_z.double(), spec, TAU, True, "dense", "auto")
    torch.testing.assert_close(loss.double(), expected[0], rtol=loss_tol, atol=0)
    assert error(grad, expected[1]) < grad_tol
    mean, grad = triton.bank_mean_score(anchors, banks, index, spec, True, "dense", "auto")
    expected = reference.bank_mean_score(x, rows, index, spec, True, "dense", "auto")
    torch.testing.assert_close(mean.double(), expected[0], rtol=loss_tol, atol=1e-7)
    assert error(grad, expected[1]) < grad_tol
    log_z = triton.bank_log_z(anchors, banks, index, spec, TAU, "dense", "auto")
    expected = reference.bank_log_z(x, rows, index, spec, TAU, "dense", "auto")
    torch.testing.assert_close(log_z.double(), expected, rtol=loss_tol, atol=0)


@pytest.mark.parametrize("bank_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_and_bank(name, bank_dtype):
    check(*problem(bank_dtype=bank_dtype), spec_of(name))


@pytest.mark.parametrize("bank_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SAMPLERS)
def test_parts_of_every_sampler(name, bank_dtype):
    anchors, banks, index, log_z = problem(bank_dtype=bank_dtype)
    spec, (x, rows), fractions = spec_of(name), exact(anchors, banks), []
    for lo, hi in pairwise((0, 1, 1025, 1057, N)):
        part, own = Part(lo, N), [bank[lo:hi] for bank in banks]
        loss, grad = triton.bank_nce(anchors, own, index, log_z, spec, TAU, True, "dense", "auto", part)
        args = index, log_z.double(), spec, TAU, True, "dense", "auto", part
        expected = reference.bank_nce(x, [bank[lo:hi] for bank in rows], *args)
        torch.testing.assert_close(loss.double(), expected[0], rtol=5e-6, atol=0)
        torch.testing.assert_close(grad.double(), expected[1], rtol=0, atol=1e-5 * float(expected[1].abs().max()))
        lse = triton.bank_log_sum_exp(anchors, own, index, spec, TAU, "dense", "auto", part)
        args = index, spec, TAU, "dense", "auto", part
        expected = reference.bank_log_sum_exp(x, [bank[lo:hi] for bank in rows], *args)
        torch.testing.assert_close(lse, expected, rtol=0, atol=1e-5)
        fractions.append((loss.double(), grad.double()))
    loss, grad = (sum(t) for t in zip(*fractions, strict=True))
    expected = reference.bank_nce(x, rows, index, log_z.double(), spec, TAU, True, "dense", "auto")
    torch.testing.assert_close(loss, expected[0], rtol=1e-6, atol=0)
    assert error(grad, expected[1]) < 1e-5


@pytest.mark.parametrize("bank_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SAMPLERS)
def test_other_critics(name, bank_dtype):
    anchors, banks, index, _ = problem(bank_dtype=bank_dtype)
    scale, bias = torch.tensor(10.0).cuda(), torch.tensor(-4.0).cuda()
    options = spec_of(name), True, "dense", "auto"
    ours = triton.bank_infonce(anchors, banks, index, options[0], TAU, *options[1:])
    ours += triton.bank_sigmoid(anchors, banks, index, scale, bias, *options)
    x, rows = exact(anchors, banks)
    expected = reference.bank_infonce(x, rows, index, options[0], TAU, *options[1:])
    expected += reference.bank_sigmoid(x, rows, index, scale, bias, *options)
    for mine, theirs in zip(ours, expected, strict=True):
        if theirs.dim() == 2:
            torch.testing.assert_close(mine.double(), theirs, rtol=2e-6, atol=2e-6)
        else:
            assert error(mine, theirs) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_anchors(dtype):
    check(*problem(dtype=dtype), spec_of("class"))


@pytest.mark.parametrize("batch, dim", [(1, 1), (16, 12), (33, 64), (300, 128), (40, 129), (5, 512)])
@pytest.mark.parametrize("bank_dtype", [torch.float32, torch.bfloat16])
def test_shapes(batch, dim, bank_dtype):
    check(*problem(1, batch, dim=dim, bank_dtype=bank_dtype), spec_of("class"))
    check(*problem(1, batch, dim=dim, bank_dtype=bank_dtype), spec_of("replacement"))


def test_one_row_and_explicit_rows():
    check(*problem(1, 1, 1, 4), NegativeSampler(1, 1, exclude="none", seed=0).cuda().spec())
    rows = torch.randint(0, 50, (B, 400), generator=torch.Generator().manual_seed(0)).cuda()
    check(*problem(), DrawSpec("given", 400, "no", False, 0, [rows]))


@pytest.mark.parametrize("precision, tol", [("high", 5e-5), ("medium", 2e-2)])
def test_lower_matmul_precision(precision, tol):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        anchors, banks, index, log_z = problem()
        loss, grad = triton.bank_nce(anchors, banks, index, log_z, spec_of("class"), TAU, True, "dense", "auto")
    finally:
        torch.set_float32_matmul_precision(before)
    args = (index, log_z.double(), spec_of("class"), TAU, True, "dense", "auto")
    expected_loss, expected_grad = reference.bank_nce(*exact(anchors, banks), *args)
    torch.testing.assert_close(loss.double(), expected_loss, rtol=tol, atol=0)
    assert 1e-7 < error(grad, expected_grad) < tol


def test_chunks_of_anchors_give_equal_results(monkeypatch):
    args = (*problem(1, 200), spec_of("class"), TAU, True, "dense", "auto")
    whole = triton.bank_nce(*args)
    monkeypatch.setattr(triton_launch, "CHUNK_BYTES", 70 * 4 * (N // 32 + 1))
    for ours, theirs in zip(triton.bank_nce(*args), whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-6)


def test_long_bank_keeps_its_accuracy():
    """One split of many tiles per program: sums of a million terms."""
    num_data = 1_000_003
    anchors, banks, index, log_z = problem(1, 1024, num_data)
    spec = NegativeSampler(num_data, "all", exclude="self").cuda().spec()
    loss, grad = triton.bank_nce(anchors, banks, index, log_z, spec, TAU, True, "dense", "auto")
    few = slice(0, 8)
    x, rows = exact(anchors[:, few], banks)
    expected = reference.bank_nce(x, rows, index[few], log_z.double(), spec, TAU, True, "dense", "auto")
    torch.testing.assert_close(loss[:, few].double(), expected[0], rtol=1e-6, atol=0)
    assert error(grad[:, few], expected[1]) < 1e-5


def test_offsets_beyond_int32():
    num_data = 2**31 // 128 + 100_000  # N * D > 2^31
    bank = torch.zeros(num_data, 128, device="cuda", dtype=torch.bfloat16)
    bank[-50_000:] = torch.randn(50_000, 128, device="cuda")
    anchors = torch.randn(1, 2, 128, device="cuda") / 11
    index = torch.tensor([num_data - 1, 5], device="cuda")
    rows = torch.randint(num_data - 50_000, num_data, (2, 300), device="cuda")
    spec = DrawSpec("given", 300, "no", False, 0, [rows])
    loss, grad = triton.bank_nce(
        anchors, [bank], index, torch.tensor([8.0], device="cuda"), spec, TAU, True, "dense", "auto"
    )
    u = (anchors[0, :, None] * bank[rows].float()).double().sum(-1) / TAU
    u = u - torch.log(torch.tensor(300 / num_data + reference.EPS)) - 8.0
    positive = (anchors[0] * bank[index].float()).double().sum(-1) / TAU
    positive = positive - torch.log(torch.tensor(300 / num_data + reference.EPS)) - 8.0
    expected = reference.softplus(-positive) + reference.softplus(u).sum(1)
    expected = expected + 300 * torch.log1p(torch.tensor(reference.EPS * num_data / 300))
    torch.testing.assert_close(loss[0].double(), expected, rtol=5e-6, atol=0)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("name", ["class", "replacement", "all_class"])
def test_repeats_are_bit_identical_and_graphs_replay(name):
    anchors, banks, index, log_z = problem()
    sampler = NegativeSampler(N, seed=11, **SAMPLERS[name]).cuda()
    args = (anchors, banks, index, log_z, sampler.spec(), TAU, True, "dense", "auto")
    first = [t.clone() for t in triton.bank_nce(*args)]
    for ours, theirs in zip(triton.bank_nce(*args), first, strict=True):
        assert torch.equal(ours, theirs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = triton.bank_nce(*args)
        sampler.advance()
    for _ in range(2):  # every replay draws the next step's rows
        expected = [t.clone() for t in triton.bank_nce(*args)]
        graph.replay()
        for ours, theirs in zip(captured, expected, strict=True):
            assert torch.equal(ours, theirs)
