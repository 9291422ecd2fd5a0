"""The losses' native step on the CPU equals the long way: loss, gradients, banks, log Z, vectors and step."""

from __future__ import annotations

import copy
import sys

import pytest
import torch

from wcord_fast import CRDLoss, WCoRDLoss, use_backend
from wcord_fast.ops import native_module

pytestmark = pytest.mark.skipif(native_module.load() is None, reason="no native module")

N, B, S_DIM, T_DIM = 40, 6, 5, 7
LABELS = torch.arange(N) % 4
LOSSES = {
    "crd": lambda **o: CRDLoss(S_DIM, T_DIM, N, nce_k=8, labels=LABELS, feat_dim=12, seed=1, **o),
    "crd all": lambda **o: CRDLoss(S_DIM, T_DIM, N, nce_k="all", feat_dim=12, seed=1, **o),
    "crd bf16 bank": lambda **o: CRDLoss(S_DIM, T_DIM, N, nce_k=8, feat_dim=12, seed=1, bank_dtype=torch.bfloat16, **o),
    "wcord": lambda **o: WCoRDLoss(S_DIM, T_DIM, N, num_negatives=8, labels=LABELS, feat_dim=12, seed=1, **o),
    "wcord ball": lambda **o: WCoRDLoss(
        S_DIM, T_DIM, N, num_negatives=8, critic="nce", embed_norm="ball", feat_dim=12, seed=1, **o
    ),
    "wcord pairs": lambda **o: WCoRDLoss(
        S_DIM, T_DIM, N, num_negatives=8, lckt_pairs="only", lckt_center="batch", lambda_lckt=2.0, feat_dim=12, **o
    ),
    "wcord sum": lambda **o: WCoRDLoss(S_DIM, T_DIM, N, num_negatives=8, lckt_reduction="sum", feat_dim=12, **o),
    "gckt": lambda **o: WCoRDLoss(S_DIM, T_DIM, N, num_negatives=8, lambda_lckt=0.0, feat_dim=12, seed=1, **o),
}


def batch(seed: int, dtype: torch.dtype = torch.float32):
    make = torch.Generator().manual_seed(seed)
    f_s, f_t = (torch.randn(B, d, generator=make, dtype=torch.float64).to(dtype) for d in (S_DIM, T_DIM))
    return f_s.requires_grad_(), f_t.requires_grad_(), torch.randperm(N, generator=make)[:B]


def twins(name: str, dtype: torch.dtype = torch.float32):
    """(a loss that takes the native step, an equal one that a hook keeps from it), log Z set."""
    torch.manual_seed(3)
    ours = LOSSES[name]().to(dtype)
    ours(*batch(0, dtype))
    other = copy.deepcopy(ours)
    other.embed_s.register_forward_hook(lambda *_: None)
    return ours, other


def is_native(loss: torch.Tensor) -> bool:
    return "ContrastStep" in str(loss.grad_fn)


def close(a, b, dtype=torch.float32):
    rtol, atol = (1e-10, 1e-12) if dtype is torch.float64 else (2e-5, 2e-6)
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_native_steps_equal_the_python_path(name, dtype):
    ours, other = twins(name, dtype)
    for seed in range(1, 4):
        mine, theirs = batch(seed, dtype), batch(seed, dtype)
        loss, expected = ours(*mine), other(*theirs)
        assert is_native(loss) and not is_native(expected)
        close(loss, expected, dtype)
        loss.backward()
        expected.backward()
        close(mine[0].grad, theirs[0].grad, dtype)
        assert (mine[1].grad is None) == (theirs[1].grad is None)
        if mine[1].grad is not None:
            close(mine[1].grad, theirs[1].grad, dtype)
        for p, q in zip(ours.parameters(), other.parameters(), strict=True):
            close(p.grad, q.grad, dtype)
        for key, value in ours.state_dict().items():
            close(value, other.state_dict()[key], dtype)
        assert int(ours.contrast.sampler.step) == seed + 1
        if isinstance(ours, WCoRDLoss):
            for term, value in ours.terms.items():
                close(value, other.terms[term], dtype)


@pytest.mark.parametrize("name", ["crd", "wcord"])
def test_eval_changes_nothing(name):
    ours, other = (loss.eval() for loss in twins(name))
    before = copy.deepcopy(ours.state_dict())
    loss = ours(*batch(1))
    assert is_native(loss)
    close(loss, other(*batch(1)))
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())


def test_explicit_rows_are_scored_and_the_images_own_rows_updated():
    ours, other = twins("crd")
    f_s, f_t, idx = batch(1)
    rows = torch.randint(0, N, (B, 6), generator=torch.Generator().manual_seed(1))
    loss = ours(f_s, f_t, idx, rows)
    assert is_native(loss)
    close(loss, other(f_s, f_t, idx, rows))
    close(ours.contrast.memory_v1.rows, other.contrast.memory_v1.rows)


def test_half_features_and_integers_of_32_bits():
    ours, other = twins("crd")
    (f_s, f_t, idx), theirs = batch(1, torch.bfloat16), batch(1, torch.bfloat16)
    loss, expected = ours(f_s, f_t, idx.int()), other(*theirs)
    assert is_native(loss)
    (loss * 1000).backward()
    (expected * 1000).backward()
    close(loss, expected)
    assert f_s.grad.dtype is torch.bfloat16
    torch.testing.assert_close(f_s.grad, theirs[0].grad, rtol=1e-2, atol=1e-2)


def test_a_ramp_weighs_both_terms():
    ours, other = twins("wcord pairs")
    for loss in (ours, other):
        loss.ramp(gckt=0.25, lckt=0.5)
    mine, theirs = batch(1), batch(1)
    value = ours(*mine)
    assert is_native(value)
    close(value, other(*theirs))
    value.backward()
    other(*batch(1))
    unramped, _ = twins("wcord pairs")
    assert unramped(*batch(1)).item() > value.item()


def test_zero_feature_map_is_divided_by_the_least_norm():
    ours, other = twins("crd")
    with torch.no_grad():
        for loss in (ours, other):
            loss.embed_s.linear.weight.zero_()
            loss.embed_s.linear.bias.zero_()
    mine, theirs = batch(1), batch(1)
    loss, expected = ours(*mine), other(*theirs)
    assert is_native(loss)
    loss.backward()
    expected.backward()
    close(loss, expected)
    mine, theirs = ours.embed_s.linear.bias.grad, other.embed_s.linear.bias.grad  # of size 1e12
    torch.testing.assert_close(mine / theirs.abs().max(), theirs / theirs.abs().max(), rtol=1e-5, atol=1e-6)


def test_unsupported_steps_take_the_python_path():
    ours, _ = twins("crd")
    with use_backend("reference"):
        assert not is_native(ours(*batch(1)))
    ours.embed_t.linear.register_forward_pre_hook(lambda *_: None)
    assert not is_native(ours(*batch(1)))
    unset, _ = twins("crd")
    unset.reset_z()
    assert not is_native(unset(*batch(1)))
    assert is_native(unset(*batch(1)))


@pytest.mark.parametrize("bad", ["f_s", "f_t", "idx"])
@pytest.mark.parametrize("name", ["crd", "wcord"])
def test_bad_values_are_named_and_change_nothing(name, bad):
    ours, _ = twins(name)
    before = copy.deepcopy(ours.state_dict())
    given = dict(zip(("f_s", "f_t", "idx"), (t.detach().clone() for t in batch(1)), strict=True))
    given[bad][2] = N if bad == "idx" else torch.nan
    with pytest.raises(ValueError, match=rf"^{bad}"):
        ours(*given.values())
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())


def test_a_row_of_a_bank_that_is_not_finite_is_named_and_nothing_is_written():
    ours, _ = twins("crd")
    f_s, f_t, idx = batch(1)
    ours.contrast.memory_v1.rows[idx[3]] = torch.inf
    before = copy.deepcopy(ours.state_dict())
    with pytest.raises(ValueError, match="rows"):
        ours(f_s, f_t, idx)
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items() if "memory_v2" not in key)


@pytest.mark.parametrize(("name", "most"), [("crd", 90), ("wcord", 160)])
def test_a_step_takes_few_python_calls(name, most):
    """Not timed: calls of this package's functions in one forward and backward."""
    ours, _ = twins(name)
    given, count = batch(1), 0
    ours(*given).backward()

    def profile(frame, event, _):
        nonlocal count
        count += event == "call" and "wcord_fast" in frame.f_code.co_filename

    sys.setprofile(profile)
    try:
        ours(*given).backward()
    finally:
        sys.setprofile(None)
    assert 10 < count <= most
