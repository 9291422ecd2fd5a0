"""CRDLoss against the published formulas over several steps, and RepDistiller's state dict."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from tests.crd_oracle import PublishedCRD
from wcord_fast import CRDLoss

N, K, S_DIM, T_DIM, D, B = 50, 12, 10, 14, 8, 6


def loss_module(**options) -> CRDLoss:
    torch.manual_seed(1)
    return CRDLoss(S_DIM, T_DIM, N, feat_dim=D, nce_k=K, seed=9, **options).double()


def published(module: CRDLoss) -> PublishedCRD:
    weights = [
        [p.detach().clone().requires_grad_() for p in (e.linear.weight, e.linear.bias)]
        for e in (module.embed_s, module.embed_t)
    ]
    c = module.contrast
    return PublishedCRD(*weights, c.memory_v1.rows, c.memory_v2.rows, 0.07, 0.5)


def batch(step):
    g = torch.Generator().manual_seed(100 + step)
    f_s = torch.randn(B, S_DIM, generator=g, dtype=torch.float64)
    f_t = torch.randn(B, T_DIM, generator=g, dtype=torch.float64)
    idx = torch.randint(0, N, (B,), generator=g)
    idx[4] = idx[1]  # a duplicate in every batch
    return f_s, f_t, idx


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("plan", ["gather", "dense"])
def test_equals_the_published_loss_over_steps(plan, given):
    module = loss_module(plan=plan)
    oracle = published(module)
    for step in range(4):
        f_s, f_t, idx = batch(step)
        if given:
            g = torch.Generator().manual_seed(step)
            contrast_idx = torch.randint(0, N, (B, K + 1), generator=g)
            contrast_idx[:, 0] = idx
        else:
            contrast_idx = torch.cat((idx[:, None], module.contrast.sampler.draw(idx)), 1)
        mine, theirs = f_s.clone().requires_grad_(), f_s.clone().requires_grad_()
        teacher, its = f_t.clone().requires_grad_(), f_t.clone().requires_grad_()  # one that is trained
        loss = module(mine, teacher, idx, contrast_idx if given else None)
        expected = oracle.step(theirs, its, idx, contrast_idx)
        module.zero_grad()
        loss.backward()
        expected.backward()
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(teacher.grad, its.grad, rtol=1e-8, atol=1e-12)
        for ours, other in ((module.embed_s, oracle.w_s), (module.embed_t, oracle.w_t)):
            torch.testing.assert_close(ours.linear.weight.grad, other[0].grad, rtol=1e-8, atol=1e-12)
            other[0].grad = other[1].grad = None
        torch.testing.assert_close(module.contrast.memory_v1.rows, oracle.v1, rtol=1e-12, atol=0)
        torch.testing.assert_close(module.contrast.memory_v2.rows, oracle.v2, rtol=1e-12, atol=0)
        torch.testing.assert_close(module.contrast.log_z.exp(), torch.stack(oracle.z), rtol=1e-10, atol=0)
        assert int(module.contrast.sampler.step) == step + 1


def test_positive_is_read_from_contrast_idx_and_the_update_uses_idx():
    module = loss_module()
    f_s, f_t, idx = batch(0)
    contrast_idx = torch.randint(0, N, (B, K + 1))
    before = module.contrast.memory_v1.rows.clone()
    module(f_s, f_t, idx, contrast_idx)
    changed = (module.contrast.memory_v1.rows != before).any(1).nonzero()[:, 0]
    assert torch.equal(changed, idx.unique())


def test_eval_scores_and_changes_nothing():
    module = loss_module().eval()
    f_s, f_t, idx = batch(0)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    a = module(f_s, f_t, idx)
    after = module.state_dict()
    assert all(torch.equal(before[k].nan_to_num(-7), after[k].nan_to_num(-7)) for k in before)
    assert torch.isfinite(a) and torch.isnan(module.contrast.log_z).all()
    assert torch.equal(a, module.train()(f_s, f_t, idx))  # the first training batch uses this estimate


def test_ema_z_moves_after_scoring():
    first, ema = loss_module(), loss_module(z="ema")
    zs, losses = [], []
    for step in range(3):
        f_s, f_t, idx = batch(step)
        a, b = first(f_s, f_t, idx), ema(f_s, f_t, idx)
        zs.append(ema.contrast.log_z.clone())
        losses.append((a.item(), b.item()))
    torch.testing.assert_close(zs[0], first.contrast.log_z)
    assert losses[0][0] == pytest.approx(losses[0][1], rel=1e-12)
    assert losses[1][0] == pytest.approx(losses[1][1], rel=1e-12)  # step 1 scores with the Z of step 0, unmoved
    assert (zs[1] != zs[0]).all() and (zs[1] - zs[0]).abs().max() < 0.5
    assert losses[2][0] != losses[2][1]


def repdistiller_state(z=(-1.0, -1.0)):
    g = torch.Generator().manual_seed(4)
    return {
        "embed_s.linear.weight": torch.randn(D, S_DIM, generator=g),
        "embed_s.linear.bias": torch.randn(D, generator=g),
        "embed_t.linear.weight": torch.randn(D, T_DIM, generator=g),
        "embed_t.linear.bias": torch.randn(D, generator=g),
        "contrast.params": torch.tensor([float(K), 0.07, *z, 0.5]),
        "contrast.memory_v1": torch.rand(N, D, generator=g),
        "contrast.memory_v2": torch.rand(N, D, generator=g),
    }


@pytest.mark.parametrize("z", [(-1.0, -1.0), (1234.5, 99.0)])
def test_repdistiller_state_dict_round_trip(z):
    module = CRDLoss(S_DIM, T_DIM, N, feat_dim=D, nce_k=K)
    state = repdistiller_state(z)
    module.load_state_dict({k: v.clone() for k, v in state.items()}, strict=True)
    written = module.repdistiller_state_dict()
    for key, value in state.items():
        torch.testing.assert_close(written[key], value, rtol=1e-6, atol=0)
    assert set(written) == set(state)
    CRDLoss(S_DIM, T_DIM, N, feat_dim=D, nce_k=K).load_state_dict(written, strict=True)
    if z[0] > 0:
        torch.testing.assert_close(module.contrast.log_z, torch.tensor(z).log())


def test_our_own_keys_win_and_resume_is_exact():
    a, b = loss_module(), loss_module()
    b.load_state_dict(repdistiller_state(), strict=True)
    for step in range(2):
        a(*batch(step))
    state = {k: v.clone() for k, v in a.state_dict().items()}
    state["contrast.params"] = torch.tensor([K, 0.07, 1.0, 1.0, 0.5])  # a stale Z, must lose against log_z
    b.load_state_dict(state, strict=True)
    assert torch.equal(a(*batch(5)), b(*batch(5)))
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_state_dict_of_another_configuration_is_refused():
    state = repdistiller_state()
    with pytest.raises(RuntimeError, match=r"made with K = 12, this loss has 5"):
        CRDLoss(S_DIM, T_DIM, N, feat_dim=D, nce_k=5).load_state_dict(dict(state))
    with pytest.raises(RuntimeError, match="temperature"):
        CRDLoss(S_DIM, T_DIM, N, feat_dim=D, nce_k=K, nce_t=0.1).load_state_dict(dict(state))
    with pytest.raises(RuntimeError, match="memory_v1"):
        CRDLoss(S_DIM, T_DIM, N + 1, feat_dim=D, nce_k=K).load_state_dict(dict(state))
    del state["contrast.memory_v2"]
    with pytest.raises(RuntimeError, match="memory_v2"):
        CRDLoss(S_DIM, T_DIM, N, feat_dim=D, nce_k=K).load_state_dict(dict(state))


def test_from_opt():
    opt = SimpleNamespace(s_dim=S_DIM, t_dim=T_DIM, n_data=N, feat_dim=D, nce_k=K, nce_t=0.1, nce_m=0.7)
    module = CRDLoss.from_opt(opt, seed=3)
    assert module.contrast.temperature == 0.1 and module.contrast.memory_v1.momentum == 0.7
    assert module.contrast.sampler.k == K and module.contrast.sampler.seed == 3
    del opt.nce_m
    with pytest.raises(ValueError, match="missing nce_m"):
        CRDLoss.from_opt(opt)


def test_init_banks_from_features():
    module = loss_module()
    f_s, f_t, _ = batch(0)
    idx = torch.arange(B)
    module.init_banks(f_s, f_t, idx)
    torch.testing.assert_close(module.contrast.memory_v1.rows[:B], module.embed_s(f_s).detach())
    torch.testing.assert_close(module.contrast.memory_v2.rows[:B], module.embed_t(f_t).detach())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("which", ["f_s", "f_t"])
def test_bad_features_are_named_and_change_nothing(which, bad):
    module = loss_module()
    f_s, f_t, idx = batch(0)
    features = {"f_s": f_s, "f_t": f_t}
    features[which][2, 3] = bad
    before = {k: v.clone() for k, v in module.state_dict().items()}
    with pytest.raises(ValueError, match=rf"{which}: row 2 holds {bad}"):
        module(**features, idx=idx)
    assert all(torch.equal(before[k].nan_to_num(-7), v.nan_to_num(-7)) for k, v in module.state_dict().items())


def test_bad_arguments_are_named():
    module = loss_module()
    f_s, f_t, idx = batch(0)
    cases = [
        ((f_s[:, :4], f_t, idx), ValueError, r"f_s: expected shape \[B, 10\]"),
        ((f_s, f_t[:3], idx), ValueError, "f_t: expected a batch of 6"),
        ((f_s, f_t, idx[:2]), ValueError, r"idx: expected shape \[6\]"),
        ((f_s, f_t, idx.float()), TypeError, "idx"),
        ((f_s.long(), f_t, idx), TypeError, "f_s"),
        ((f_s[:0], f_t[:0], idx[:0]), ValueError, "f_s"),
        ((f_s, f_t, idx + N), ValueError, r"idx\[0\]: expected a row in \[0, 50\)"),
        (
            (f_s, f_t, idx, idx[:, None]),
            ValueError,
            "contrast_idx: expected the positive and at least one negative",
        ),
        ((f_s, f_t, idx, torch.full((B, K + 1), N)), ValueError, "contrast_idx"),
    ]
    before = {k: v.clone() for k, v in module.state_dict().items()}
    for args, error, message in cases:
        with pytest.raises(error, match=message):
            module(*args)
    assert all(torch.equal(before[k].nan_to_num(-7), v.nan_to_num(-7)) for k, v in module.state_dict().items())


def test_feature_maps_and_low_precision_are_taken_and_gradients_keep_their_dtype():
    module = CRDLoss(S_DIM, T_DIM, N, feat_dim=D, nce_k=K, seed=1)
    f_s, f_t, idx = batch(0)
    f_s = f_s.bfloat16()[:, :, None, None].requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = module(f_s, f_t.bfloat16(), idx)
    loss.backward()
    assert loss.dtype == torch.float32 and f_s.grad.dtype == torch.bfloat16
    twin = CRDLoss(S_DIM, T_DIM, N, feat_dim=D, nce_k=K, seed=1)
    twin.load_state_dict({k: v for k, v in module.state_dict().items() if "contrast" not in k}, strict=False)
    torch.testing.assert_close(loss, twin(f_s.detach().float(), f_t.bfloat16().float(), idx), rtol=1e-6, atol=0)
