"""The native CPU bank ops against the reference in float64: every sampler, plan, dtype and instruction set."""

from __future__ import annotations

import math

import pytest
import torch

from tests.bank_cases import SAMPLERS, problem, relative_error
from wcord_fast.ops import native_module
from wcord_fast.ops.bank import native_cpu

pytestmark = pytest.mark.skipif(
    native_module.load() is None, reason=f"no native module: {native_module.unavailable_reason('cpu')}"
)

PLANS = ("gather", "dense")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check(case, plan: str, *, value: float, grad: float) -> None:
    expected, ours = case.answers(), case.results(native_cpu, plan)
    wide = torch.float64 in (case.anchors.dtype, case.banks[0].dtype)
    for op, answer in expected.items():
        wide_sums = op in ("infonce", "sigmoid")  # [S, B], fp64
        for r in ours[op]:
            assert r.dtype == (torch.float64 if wide or (wide_sums and r.dim() == 2) else torch.float32)
        if op == "mean":  # a mean of scores of both signs may vanish: its error is in units of the anchor's norm
            scale = case.anchors.double().norm(dim=2).clamp_min(1)
            assert float(((ours[op][0] - answer[0]).abs() / scale).max()) <= grad
        elif op == "infonce":  # a logarithm may vanish, too
            assert float(((ours[op][0] - answer[0]).abs() / answer[0].abs().clamp_min(1)).max()) <= value
        else:
            assert relative_error(ours[op][0], answer[0]) <= value, op
        for actual, wanted in zip(ours[op][1:], answer[1:], strict=True):
            assert relative_error(actual, wanted) <= grad, op


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler(simd, name, plan):
    check(problem(name), plan, value=1e-6, grad=1e-6)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("bank", DTYPES)
@pytest.mark.parametrize("anchor", DTYPES)
def test_every_dtype(simd, anchor, bank, plan):
    exact = torch.float64 in (anchor, bank)
    for name in ("class", "replaced", "all"):
        case = problem(name, dim=37, anchor=anchor, bank=bank)
        check(case, plan, value=1e-13 if exact else 1e-6, grad=1e-13 if exact else 1e-6)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("dim", [1, 2, 15, 16, 17, 64, 127, 128, 129, 260])
def test_every_width(simd, dim, plan):
    for bank in (torch.float32, torch.bfloat16):
        check(problem("class", dim=dim, bank=bank), plan, value=1e-6, grad=2e-6)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("none", {"num_data": 1, "k": 1, "batch": 1}),
        ("none", {"num_data": 1, "k": 5, "batch": 2}),
        ("self", {"num_data": 2, "k": 1, "batch": 3}),
        ("self", {"num_data": 64, "k": 63}),
        ("none", {"num_data": 65, "k": 65}),
        ("class", {"batch": 1}),
        ("class", {"k": 1}),
        ("class", {"num_data": 5000, "k": 4000, "batch": 130, "dim": 8}),  # several blocks of anchors, several tiles
        ("counts", {"num_data": 9}),
        ("replaced", {"num_data": 3, "k": 150_000, "batch": 2, "dim": 3}),  # pieces of one anchor, counts of 50,000
        ("given", {"num_data": 70, "k": 70_000, "batch": 2, "dim": 3}),
        ("all", {"num_data": 70_000, "dim": 3}),  # rows that cancel: the gradient is a 300th of its terms' sizes
    ],
)
def test_every_size(name, sizes, plan):
    if name == "none" and sizes["k"] > sizes["num_data"]:
        with pytest.warns(UserWarning, match="exceeds a pool"):
            case = problem(name, **sizes)
    else:
        case = problem(name, **sizes)
    check(case, plan, value=1e-6, grad=1e-4 if name == "all" else 1e-5)


@pytest.mark.parametrize("plan", PLANS)
def test_the_default_shape(plan):
    case = problem("class", num_data=50_000, k=16_384, batch=4, dim=128)
    check(case, plan, value=1e-6, grad=1e-5)


@pytest.mark.parametrize("plan", PLANS)
def test_two_directions_in_one_call_equal_two_calls(plan):
    """Directions of different dtypes too; the draws are the same for both."""
    case = problem("class", dim=32)
    case.banks[1] = case.banks[1].to(torch.bfloat16)
    loss, grad = case.results(native_cpu, plan)["nce"]
    for s in range(2):
        one = native_cpu.bank_nce(
            case.anchors[s : s + 1], [case.banks[s]], case.index, case.log_z[s : s + 1], case.spec, 0.07, True, plan, ""
        )
        torch.testing.assert_close(loss[s], one[0][0], rtol=1e-6, atol=0)
        torch.testing.assert_close(grad[s], one[1][0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("plan", PLANS)
def test_values_do_not_depend_on_requires_grad(plan):
    case = problem("class")
    with_grad, _ = native_cpu.bank_nce(case.anchors, case.banks, case.index, case.log_z, case.spec, 1.0, True, plan, "")
    without, empty = native_cpu.bank_nce(
        case.anchors, case.banks, case.index, case.log_z, case.spec, 1.0, False, plan, ""
    )
    assert torch.equal(with_grad, without) and empty.numel() == 0


@pytest.mark.parametrize("batch", [9, 17, 33, 65])
def test_every_number_of_anchor_groups(simd, batch):
    """The dense plan takes anchors in vectors, groups of vectors and blocks of groups: each is left partly filled."""
    for name in ("class", "replaced", "all"):
        check(problem(name, batch=batch), "dense", value=1e-6, grad=2e-6)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("temperature", [0.005, 0.07, 5.0])
@pytest.mark.parametrize("log_z", [-60.0, 0.0, 11.0, 200.0, 1e4])
def test_extreme_temperatures_and_scores_stay_exact(simd, temperature, log_z, plan):
    """Terms far below the rounding of 1, terms in their linear part, and scores of 1 / tau = 200."""
    from wcord_fast.ops.bank import reference

    case = problem("class", dim=16)
    case.log_z = torch.tensor([log_z, log_z])
    args = (case.index, case.log_z, case.spec, temperature, True, plan, "reference")
    loss, grad = native_cpu.bank_nce(case.anchors, case.banks, *args)
    expected = reference.bank_nce(case.anchors.double(), [b.double() for b in case.banks], *args)
    assert relative_error(loss, expected[0]) <= 1e-6
    # An error of rounding in the exponent, |u| <= 1 / tau + ..., is a relative error of sigmoid(u) where that is tiny.
    scale = max(1.0, 1 / temperature / 14, abs(log_z) / 100)
    assert relative_error(grad, expected[1]) <= 2e-6 * scale


@pytest.mark.parametrize("plan", PLANS)
def test_huge_scores(simd, plan):
    case = problem("self", dim=3)
    case.anchors *= 1e4
    check(case, plan, value=1e-6, grad=1e-6)
    case.anchors = torch.full_like(case.anchors, 3e38)  # a score beyond fp32
    case.banks = [torch.full_like(bank, 1.0) for bank in case.banks]
    loss, grad = case.results(native_cpu, plan)["nce"]
    assert torch.equal(loss, torch.full_like(loss, torch.inf)) and torch.isfinite(grad).all()


@pytest.mark.parametrize("plan", PLANS)
def test_an_unset_log_z_gives_nan(simd, plan):
    case = problem("class")
    case.log_z[1] = torch.nan
    loss, grad = case.results(native_cpu, plan)["nce"]
    assert torch.isfinite(loss[0]).all() and torch.isfinite(grad[0]).all()
    assert loss[1].isnan().all() and grad[1].isnan().all()


@pytest.mark.parametrize("plan", PLANS)
def test_terms_smaller_than_machine_epsilon_are_kept(simd, plan):
    """Negatives of u = -18 each add 1.5e-8: with the positive's term at 0 they are all of the loss."""
    from wcord_fast.ops.bank import reference

    case = problem("given", dim=2, num_data=3000, k=2000)
    others = torch.tensor([r for r in range(3000) if r not in case.index.tolist()])
    case.spec = type(case.spec)("given", 2000, "no", False, 0, [others[:2000].repeat(5, 1)])
    case.anchors = torch.tensor([1.0, 0.0]).repeat(2, 5, 1)
    for bank in case.banks:
        bank[:] = torch.tensor([0.0, 1.0])
        bank[case.index] = torch.tensor([1.0, 0.0])
    args = (case.index, torch.full((2,), 18.0), case.spec, 0.01, True, plan, "reference")
    loss, _ = native_cpu.bank_nce(case.anchors, case.banks, *args)
    expected, _ = reference.bank_nce(case.anchors.double(), [b.double() for b in case.banks], *args)
    negatives = expected - 2000 * math.log1p(1e-7 * 3000 / 2000)
    assert (negatives < 5e-5).all() and (negatives > 4e-5).all()
    assert relative_error(loss, expected) <= 1e-6
