"""Random calls of the bank functions: native results against the reference in float64, bad input against its message.

`python -m pytest tests/test_fuzz_bank.py --hypothesis-profile=long` draws many more (see conftest.py).
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests import bank_fuzz
from wcord_fast import functional as F
from wcord_fast import use_backend
from wcord_fast.ops import native_module

pytestmark = [
    pytest.mark.skipif(
        native_module.load() is None, reason=f"no native module: {native_module.unavailable_reason('cpu')}"
    ),
    pytest.mark.filterwarnings("ignore:k = "),  # a small pool is drawn from with replacement, which is told
]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True, scope="module")
def as_before():
    before = torch.get_num_threads(), native_module.module().simd()
    yield
    torch.set_num_threads(before[0])
    native_module.module().set_simd(before[1])


def within(ours: Tensor, answer: Tensor, bound: Tensor) -> None:
    """Every number of `ours` is as near to `answer` as `bound` (absolute) and its own dtype allow."""
    info = torch.finfo(ours.dtype)
    answer = answer.detach()
    room = bound + answer.abs() * info.eps + info.smallest_normal * info.eps
    fits = answer.abs() < info.max * (1 - info.eps)
    assert bool(torch.isfinite(ours[fits]).all())
    off = ((ours.double() - answer).abs() / room)[fits]
    assert off.numel() == 0 or float(off.max()) <= 1, (float(off.max()), ours, answer)


@given(st.data())
def test_scores_equal_float64(data):
    call = data.draw(bank_fuzz.calls())
    torch.set_num_threads(data.draw(st.sampled_from((1, 2, 5))))
    native_module.module().set_simd(data.draw(st.sampled_from(("portable", "avx2", "avx512"))))
    before = [t.clone() for t in call.tensors()]

    exact = call.in_float64()
    unit = 1e-12 if torch.float64 in (call.anchor.dtype, call.bank.dtype) else 1e-6
    longest = float(exact.bank.norm(dim=1).max())  # a row of the bank
    size = exact.anchor.norm(dim=1) * longest / call.tau  # [B], the largest score of an anchor, of the rounding's order

    loss, grad = bank_fuzz.with_gradient(F.bank_nce, call, log_z=call.log_z, temperature=call.tau)
    answer, slope = bank_fuzz.with_gradient(F.bank_nce, exact, log_z=exact.log_z, temperature=call.tau)
    # A term's slope is at most its value, so an error of u is no more than that, relative to the loss.
    fraction = unit * (1 + size + abs(float(exact.log_z)) + math.log(call.num_data))
    within(loss, answer, fraction * answer)
    within(grad, slope, (fraction * answer * longest / call.tau)[:, None])

    loss, grad = bank_fuzz.with_gradient(F.bank_infonce, call, temperature=call.tau)
    answer, slope = bank_fuzz.with_gradient(F.bank_infonce, exact, temperature=call.tau)
    room = unit * (2 + size + math.log(call.num_data))  # of a score / tau, so of a loss and, relatively, of a softmax
    within(loss, answer, room)
    within(grad, slope, (room * longest / call.tau)[:, None])

    scalars = {"scale": 8.0, "bias": -3.0}
    loss, grad = bank_fuzz.with_gradient(F.bank_sigmoid, call, **scalars)
    answer, slope = bank_fuzz.with_gradient(F.bank_sigmoid, exact, **scalars)
    fraction = unit * (4 + 8 * size * call.tau)
    within(loss, answer, fraction * answer)
    within(grad, slope, (fraction * answer * longest * 8)[:, None])

    mean, grad = bank_fuzz.with_gradient(F.bank_mean_score, call)
    answer, slope = bank_fuzz.with_gradient(F.bank_mean_score, exact)
    within(mean, answer, unit * size * call.tau)
    within(grad, slope, torch.full_like(slope, unit * longest))

    ours = F.bank_log_z(call.anchor, call.bank, call.index, temperature=call.tau, **call.options())
    answer = F.bank_log_z(exact.anchor, exact.bank, exact.index, temperature=call.tau, **exact.options())
    within(ours, answer, unit * (2 + size.max() + math.log(call.num_data)))
    assert all(torch.equal(a, b) for a, b in zip(before, call.tensors(), strict=True))


@given(st.data())
def test_updates_equal_a_loop(data):
    draw = data.draw
    num_data, dim, batch = draw(st.integers(1, 20)), draw(st.integers(1, 70)), draw(st.integers(1, 12))
    g = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    bank = torch.randn(num_data, dim, generator=g).to(draw(st.sampled_from(DTYPES)))
    rows = torch.randn(batch, dim, generator=g) * draw(st.sampled_from((0.0, 1e-30, 1.0, 1e4)))
    rows = bank_fuzz.laid_out(rows.to(draw(st.sampled_from(DTYPES))), draw(st.sampled_from(bank_fuzz.LAYOUTS)))
    index = torch.randint(0, num_data, (batch,), generator=g).to(draw(st.sampled_from((torch.int32, torch.int64))))
    momentum = draw(st.sampled_from((0.0, 0.5, 0.9, 1.0)))
    acc = torch.float64 if bank.dtype == torch.float64 else torch.float32

    expected = bank.to(torch.float64, copy=True)
    for b, r in enumerate(index.tolist()):  # from the bank before the call, so the last one wins
        new = (momentum * bank[r].to(acc) + (1 - momentum) * rows[b].to(acc)).double()
        expected[r] = new / new.norm().clamp_min(1e-12)
    torch.set_num_threads(draw(st.sampled_from((1, 3))))
    for backend in ("native", "reference"):
        actual, given_rows = bank.clone(), rows.clone()
        with use_backend(backend):
            F.bank_update_(actual, index, rows, momentum)
        within(actual, expected, torch.full_like(expected, 4 * torch.finfo(acc).eps))
        assert torch.equal(rows, given_rows)


@pytest.mark.parametrize("function", bank_fuzz.FUNCTIONS)
@given(data=st.data())
def test_bad_input_is_named(function, data):
    call = data.draw(bank_fuzz.calls())
    arguments = bank_fuzz.arguments(function, call)
    name = data.draw(st.sampled_from(sorted(arguments)))
    arguments[name] = data.draw(bank_fuzz.corrupted(name, call))
    before = [t.clone() for t in call.tensors()]
    with pytest.raises((ValueError, TypeError, NotImplementedError), match=name):
        getattr(F, function)(**arguments)
    assert all(torch.equal(a, b) for a, b in zip(before, call.tensors(), strict=True))
