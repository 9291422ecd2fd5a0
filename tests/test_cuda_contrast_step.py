"""A training step's kernels beside the score, thread by thread on the CPU, within the modules that launch them."""

from __future__ import annotations

import copy

import pytest
import torch

from wcord_fast import CRDLoss, WCoRDLoss, use_backend
from wcord_fast.nn import native_step
from wcord_fast.ops import native_module, status
from wcord_fast.ops.status import Code

from .cuda_on_cpu import build
from .cuda_on_cpu.module import emulated

SOURCES = [build.CSRC / "cuda" / f"{name}.cu" for name in ("step_rows", "spectral")]
B, N, S_DIM, T_DIM = 6, 50, 9, 40
LABELS = torch.arange(N) % 5

pytestmark = [pytest.mark.slow, pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build.compile_library(SOURCES, tmp_path_factory.mktemp("step"))


@pytest.fixture
def on_device(library, monkeypatch):
    """Steps take the path of a CUDA device, with the scores of the CPU."""
    with emulated(library):
        monkeypatch.setattr(native_step, "_host_step", native_step._device_step)
        reason = native_module.unavailable_reason
        monkeypatch.setattr(
            native_module, "unavailable_reason", lambda device: None if device == "cuda" else reason(device)
        )
        yield


def batch(seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    f_s, f_t = (torch.randn(B, dim, generator=g).to(dtype) for dim in (S_DIM, T_DIM))
    return f_s, f_t, torch.tensor([3, 17, 3, 49, 0, 8])  # 3 is there twice


def step(loss, f_s, f_t, idx):
    """The loss and the gradient of every input and parameter that has one, and what has made the loss."""
    leaves = [f_s.clone().requires_grad_(), f_t.clone().requires_grad_()]
    loss.zero_grad(set_to_none=True)
    value = loss(*leaves, idx)
    before, made_by = value.detach().clone(), str(value.grad_fn)
    value *= 2.5  # in place, as callers may
    value.backward()
    return [before, *(t.grad for t in (*leaves, *loss.parameters()) if t.grad is not None)], made_by


CASES = {
    "crd": lambda: CRDLoss(S_DIM, T_DIM, N, feat_dim=33, nce_k=12, labels=LABELS, seed=1),
    "crd bf16": lambda: CRDLoss(S_DIM, T_DIM, N, feat_dim=16, nce_k=12, seed=1, bank_dtype=torch.bfloat16),
    "crd ema": lambda: CRDLoss(S_DIM, T_DIM, N, feat_dim=16, nce_k=12, seed=1, z="ema"),
    "wcord": lambda: WCoRDLoss(S_DIM, T_DIM, N, feat_dim=33, num_negatives=12, labels=LABELS, seed=1, lambda_lckt=1.0),
    "gckt ball": lambda: WCoRDLoss(
        S_DIM, T_DIM, N, feat_dim=8, num_negatives=12, seed=1, lambda_lckt=0.0, embed_norm="ball"
    ),
    "pairs": lambda: WCoRDLoss(
        S_DIM, T_DIM, N, feat_dim=8, num_negatives=12, seed=1, lambda_lckt=2.0, lckt_pairs="only"
    ),
}


@pytest.mark.parametrize("ramped", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_steps_equal_the_reference(on_device, case, ramped):
    torch.manual_seed(0)
    ours = CASES[case]()
    theirs = copy.deepcopy(ours).double()
    for loss in (ours, theirs):
        if ramped and isinstance(loss, WCoRDLoss):
            loss.ramp(gckt=0.25, lckt=0.5)
    exact = 1e-5 if case != "crd bf16" else 2e-2  # the reference keeps its rows in fp64
    for seed in range(3):
        actual, made_by = step(ours, *batch(seed))
        assert "ContrastStep" in made_by
        with use_backend("reference"):
            expected, other = step(theirs, *batch(seed, torch.float64))
        assert "ContrastStep" not in other
        assert len(actual) == len(expected)
        for f, w in zip(actual, expected, strict=True):
            assert (f - w).abs().max() <= exact * w.abs().max()
        state, reference = ours.state_dict(), theirs.state_dict()
        for name, there in reference.items():
            if there.is_floating_point():
                assert (state[name] - there).abs().max() <= 4 * exact * there.abs().max(), name
            else:
                assert torch.equal(state[name], there), name
        if isinstance(ours, WCoRDLoss):
            for name, term in ours.terms.items():
                assert float(term) == pytest.approx(float(theirs.terms[name]), rel=1e-4, abs=1e-6)
    ours.eval(), theirs.eval()
    before = copy.deepcopy(ours.state_dict())
    actual, _ = step(ours, *batch(9))
    with use_backend("reference"):
        expected, _ = step(theirs, *batch(9, torch.float64))
    assert all((f - w).abs().max() <= exact * w.abs().max() for f, w in zip(actual, expected, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


def test_a_module_in_fp64_is_exact(on_device):
    torch.manual_seed(0)
    ours = CASES["wcord"]().double()
    theirs = copy.deepcopy(ours)
    for seed in range(2):
        actual, _ = step(ours, *batch(seed, torch.float64))
        with use_backend("reference"):
            expected, _ = step(theirs, *batch(seed, torch.float64))
        assert all((f - w).abs().max() <= 1e-12 * w.abs().max() for f, w in zip(actual, expected, strict=True))


def test_gradients_only_for_inputs_that_require_them_and_in_half_for_half_features(on_device):
    loss = CASES["gckt ball"]()
    f_s, f_t, idx = batch()
    loss(f_s, f_t, idx)
    with torch.no_grad():
        assert loss(f_s, f_t, idx).grad_fn is None
    loss.embed_t.requires_grad_(False)
    half = f_s.half().requires_grad_()
    loss(half, f_t, idx).backward()
    assert half.grad.dtype == torch.float16 and loss.embed_t.linear.weight.grad is None


def test_an_embedding_that_is_not_finite_is_flagged_and_never_reaches_a_bank(on_device):
    loss = CASES["crd"]()
    f_s, f_t, idx = batch()
    loss(f_s, f_t, idx)
    rows = loss.contrast.memory_v1.rows.clone()
    f_s[1] = torch.inf
    with pytest.raises(ValueError, match="anchor"):  # the score is the CPU's, which raises; a device flags
        loss(f_s, f_t, idx)
    assert torch.equal(loss.contrast.memory_v1.rows, rows)

    def score(anchors, needs_grad):
        bad = anchors.isnan().any(-1)
        assert bad[0].tolist() == [False, True, False, False, False, False] and not bad[1].any()
        return torch.where(bad, torch.nan, torch.ones(2, B)), torch.zeros_like(anchors)

    loss.contrast.losses_and_gradient = lambda anchors, idx, given, needs_grad: score(anchors, needs_grad)
    assert loss(f_s, f_t, idx).isnan()
    kept = loss.contrast.memory_v1.rows
    changed = (kept != rows).any(1).nonzero().flatten().tolist()
    assert kept.isfinite().all() and 17 not in changed and 3 in changed
    assert status.word(torch.device("cpu")).item() & Code.UPDATE_ROW
