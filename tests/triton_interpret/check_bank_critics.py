"""InfoNCE and the sigmoid loss by the dense Triton plan, interpreted on the CPU, against the float64 reference.

tests/test_bank_triton.py runs this file in a process of its own, with check_bank.py.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from wcord_fast import NegativeSampler
from wcord_fast.ops.bank import reference, triton, triton_launch
from wcord_fast.ops.bank.part import Part
from wcord_fast.ops.sampling.spec import DrawSpec

from .check_bank import SAMPLERS, B, N, exact, poisoned_memory, problem, spec_of  # noqa: F401

SCALE, BIAS = torch.tensor(10.0), torch.tensor(-4.0)
CRITICS = ("infonce", "sigmoid")


def sums(module, critic, anchors, banks, index, spec, needs_grad=True, part=None, scale=SCALE):
    options = needs_grad, "dense", "reference", part
    if critic == "infonce":
        return module.bank_infonce(anchors, banks, index, spec, 1 / float(scale), *options)
    return module.bank_sigmoid(anchors, banks, index, scale, BIAS, spec, *options)


def check(critic, anchors, banks, index, spec, part=None, tol=2e-6, scale=SCALE):
    ours = sums(triton, critic, anchors, banks, index, spec, part=part, scale=scale)
    expected = sums(reference, critic, *exact(anchors, banks), index, spec, part=part, scale=scale.double())
    for mine, theirs in zip(ours, expected, strict=True):
        assert mine.dtype == torch.float32 and mine.shape == theirs.shape
        if theirs.dim() == 2:
            torch.testing.assert_close(mine.double(), theirs, rtol=tol, atol=tol)
        else:
            assert (mine - theirs).norm() <= 5 * tol * (1e-3 + theirs.norm())
    return ours


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.filterwarnings("ignore:k = 33 exceeds a pool")
def test_every_sampler(critic, name):
    anchors, banks, index, _ = problem(2 if name == "class" else 1)
    check(critic, anchors, banks, index, spec_of(name))


@pytest.mark.parametrize("name", ["class", "replacement", "all_self", "expected"])
@pytest.mark.parametrize("critic", CRITICS)
def test_parts_and_explicit_rows(critic, name):
    anchors, banks, index, _ = problem()
    rows = torch.randint(0, 9, (B, 40), generator=torch.Generator().manual_seed(0))  # rows of the first part only
    spec = DrawSpec("given", 40, "no", False, 0, [rows]) if name == "class" else spec_of(name)
    for lo, hi in pairwise((0, 33, N)):
        check(critic, anchors, [bank[lo:hi] for bank in banks], index, spec, Part(lo, N))


@pytest.mark.parametrize("dtype, bank_dtype", [(torch.float32, torch.bfloat16), (torch.float16, torch.float32)])
@pytest.mark.parametrize("critic", CRITICS)
def test_dtypes_and_long_rows(critic, dtype, bank_dtype):
    anchors, banks, index, _ = problem(1, dim=130, dtype=dtype, bank_dtype=bank_dtype)
    check(critic, anchors, banks, index, spec_of("class"))


@pytest.mark.parametrize("critic", CRITICS)
def test_splits_and_no_gradient(critic, monkeypatch):
    anchors, banks, index, _ = problem(2, num_data=150)
    spec = NegativeSampler(150, "all", exclude="self").spec()
    monkeypatch.setattr(triton_launch, "processors", lambda device: 99)
    whole = check(critic, anchors, banks, index, spec)
    some = sums(triton, critic, anchors, banks, index, spec, needs_grad=False)
    assert all(torch.equal(a, b) for a, b in zip(some[:-1], whole[:-1], strict=True)) and some[-1].numel() == 0


@pytest.mark.parametrize("critic", CRITICS)
def test_scores_of_any_size(critic):
    """Scores up to 1000: nothing overflows; a score's rounding is relative to its size."""
    anchors, banks, index, _ = problem()
    check(critic, anchors, banks, index, spec_of("class"), tol=1e-4, scale=torch.tensor(1000.0))
