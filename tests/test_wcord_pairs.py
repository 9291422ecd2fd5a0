"""The local term with known pairs, centring and a mapped student; ramps and log Z that is forgotten."""

import pytest
import torch

from tests.test_wcord import LABELS, S_DIM, T_DIM, N, batch, loss_module
from wcord_fast import CRDLoss, WCoRDLoss
from wcord_fast import functional as F

ALONE = {"lambda_gckt": 0.0, "lambda_lckt": 1.0}
SINKHORN = {"ot_solver": "sinkhorn", "ot_eps": 0.1}


def raw(**options) -> WCoRDLoss:
    torch.manual_seed(1)
    return WCoRDLoss(S_DIM, S_DIM, N, **ALONE, lckt_features="raw", labels=LABELS, **options).double().eval()


def features():
    f_s, f_t, idx = batch()
    return (f_s + 3).requires_grad_(), f_t[:, :S_DIM].clone() - 2, idx


def centred(t):
    return t - t.mean(0)


def test_only_is_the_mean_cosine_cost_of_the_pairs_and_its_gradient_passes_the_centring():
    f_s, f_t, idx = features()
    for center, see in (("none", lambda t: t), ("batch", centred)):
        loss = raw(lckt_pairs="only", lckt_center=center)(f_s, f_t, idx)
        want = 1 - torch.cosine_similarity(see(f_s), see(f_t)).mean()
        torch.testing.assert_close(loss, want)
        torch.testing.assert_close(*(torch.autograd.grad(value, f_s)[0] for value in (loss, want)))
    torch.autograd.gradcheck(lambda x: raw(lckt_pairs="only", lckt_center="batch")(x, f_t, idx), (f_s,))
    squared = raw(lckt_pairs="only", ot_cost="sqeuclidean", lckt_reduction="sum")(f_s, f_t, idx)
    torch.testing.assert_close(squared, (f_s - f_t).square().sum())


def test_only_survives_features_whose_squares_do_not_fit():
    f_s, f_t, idx = features()
    near, far = (raw(lckt_pairs="only").float()(f_s.float() * s, f_t.float() * s, idx) for s in (1, 1e30))
    torch.testing.assert_close(near, far)


def test_prior_is_ot_cost_with_the_rows_of_one_image_or_class_as_pairs():
    f_s, f_t, idx = features()
    idx[1] = idx[0]  # two copies of an image
    for by, labels in (("image", idx), ("class", LABELS[idx])):
        module = raw(lckt_pairs="prior", lckt_rho=0.7, lckt_pairs_by=by, lckt_center="batch", **SINKHORN)
        options = {"solver": "sinkhorn", "eps": 0.1, "pairs": (labels, labels), "rho": 0.7}
        want = F.ot_cost(centred(f_s), centred(f_t), **options)
        actual = module(f_s, f_t, idx)
        torch.testing.assert_close(actual, want)
        torch.testing.assert_close(*(torch.autograd.grad(value, f_s)[0] for value in (actual, want)))
        plan = F.ot_plan(centred(f_s), centred(f_t), **options)
        mass = plan[labels[:, None] == labels[None]].sum()
        torch.testing.assert_close(module.lckt_on_pairs(f_s, f_t, idx), mass)


def test_the_default_is_the_paper_s_transport():
    f_s, f_t, idx = features()
    assert torch.equal(raw()(f_s, f_t, idx), F.ot_cost(f_s, f_t))
    plan = F.ot_plan(f_s, f_t)
    torch.testing.assert_close(raw().lckt_on_pairs(f_s, f_t, idx), plan.diagonal().sum())
    assert "lckt" not in " ".join(raw().state_dict()) and not any("map" in name for name in raw().state_dict())


def test_mapped_trains_a_linear_map_of_the_student_and_nothing_of_the_teacher():
    module = loss_module(**ALONE, lckt_features="mapped", lckt_pairs="only", lckt_center="batch")
    f_s, f_t, idx = batch()
    f_t.requires_grad_()
    loss = module(f_s.requires_grad_(), f_t, idx)
    mapped = f_s @ module.local.map.weight.T + module.local.map.bias
    torch.testing.assert_close(loss, 1 - torch.cosine_similarity(centred(mapped), centred(f_t)).mean())
    loss.backward()
    assert module.local.map.weight.shape == (T_DIM, S_DIM) and module.local.map.weight.grad.abs().sum() > 0
    assert f_t.grad is None and f_s.grad.abs().sum() > 0
    assert {"local.map.weight", "local.map.bias"} <= set(module.state_dict())


def test_centred_batch_of_one_image_gives_zero():
    f_s, f_t, idx = features()
    for pairs in ("none", "only"):
        loss = raw(lckt_pairs=pairs, lckt_center="batch")(f_s[:1], f_t[:1], idx[:1])
        assert loss == 0 and torch.autograd.grad(loss, f_s)[0].abs().sum() == 0


def test_bf16_under_autocast_gives_a_loss_of_the_right_size():
    module = loss_module(**ALONE, lckt_features="mapped", lckt_pairs="only", lckt_center="batch").float()
    f_s, f_t, idx = (t.float() if t.is_floating_point() else t for t in batch())
    want = module(f_s, f_t, idx)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = module(f_s.bfloat16(), f_t.bfloat16(), idx)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, want, atol=0.02, rtol=0)


def test_a_ramp_scales_each_term_s_value_and_gradient_in_place():
    plain, ramped = (loss_module(lambda_lckt=0.5).eval() for _ in range(2))
    f_s, f_t, idx = batch()
    f_s.requires_grad_()
    plain(f_s, f_t, idx)
    terms = {name: value.clone() for name, value in plain.terms.items()}
    ramped.ramp(gckt=0.25, lckt=0.5)
    actual = ramped(f_s, f_t, idx)
    torch.testing.assert_close(actual, (-0.8 * 0.25 * terms["gckt"] + 0.5 * 0.5 * terms["lckt"]))
    torch.testing.assert_close(ramped.terms["gckt"], terms["gckt"])  # logged terms are not weighted
    at = ramped._factors.data_ptr()
    ramped.ramp(gckt=1, lckt=1)
    assert ramped._factors.data_ptr() == at and torch.equal(ramped(f_s, f_t, idx), plain(f_s, f_t, idx))
    assert ramped.state_dict().keys() == plain.state_dict().keys()
    with pytest.raises(ValueError, match="lckt: "):
        ramped.ramp(lckt=-1)


def test_reset_log_z_is_estimated_from_the_next_batch():
    torch.manual_seed(0)
    loss = CRDLoss(S_DIM, T_DIM, N, feat_dim=8, nce_k=9, labels=LABELS, seed=1).double()
    loss(*batch(0))
    first = loss.contrast.log_z.clone()
    loss(*batch(1))
    assert torch.equal(loss.contrast.log_z, first)
    loss.reset_z()
    assert loss.contrast.log_z.isnan().all()
    loss(*batch(2))
    assert loss.contrast.log_z.isfinite().all() and not torch.equal(loss.contrast.log_z, first)
    loss_module(**ALONE).reset_z()  # has no bank, and no Z


ERRORS = [
    ({"lckt_pairs": "all"}, "lckt_pairs"),
    ({"lckt_rho": 1.0}, "lckt_rho: expected a number in .0, 1., got 1; use lckt_pairs='only'"),
    ({"lckt_rho": -0.5}, "lckt_rho"),
    ({"lckt_center": "running mean"}, "lckt_center"),
    ({"lckt_pairs_by": "label"}, "lckt_pairs_by"),
    ({"lckt_pairs_by": "class"}, "lckt_pairs_by='class' needs lckt_pairs='prior', got 'none'"),
    ({"lckt_pairs_by": "class", "lckt_pairs": "prior", "labels": None}, "lckt_pairs_by='class' needs labels"),
]


@pytest.mark.parametrize(("options", "message"), ERRORS)
def test_bad_pair_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        loss_module(**options)


@pytest.mark.parametrize(
    "options, name, how",
    [
        ({"lckt_features": "mapped"}, "f_t", ""),
        ({"lckt_features": "raw"}, "f_t", ""),
        ({"lckt_features": "raw", "lckt_center": "batch"}, "f_s", " once centred"),
        ({"lckt_features": "raw", "lckt_center": "running", "lckt_pairs": "prior"}, "f_s", " once centred"),
    ],
)
def test_a_row_without_direction_is_named_and_changes_nothing(options, name, how):
    torch.manual_seed(0)
    loss = WCoRDLoss(6, 6, 20, num_negatives=5, feat_dim=8, seed=0, **options)
    before = {key: value.clone() for key, value in loss.state_dict().items()}
    f_s, f_t = torch.ones(4, 6), torch.randn(4, 6)
    if not how:
        f_s, f_t = f_s.normal_(), torch.zeros(4, 6)
    with pytest.raises(ValueError, match=f"^{name}: row 0 is zero{how}, which has no direction"):
        loss(f_s, f_t, torch.arange(4))
    for key, value in loss.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0, equal_nan=True)  # log Z is unset


def test_distances_that_overflow_are_refused():
    options = {"lckt_features": "raw", "ot_cost": "sqeuclidean", "lckt_pairs": "only"}
    loss = WCoRDLoss(6, 6, 20, num_negatives=5, seed=0, **options)
    with pytest.raises(ValueError, match=r"^f_s, f_t: squared distances of 'raw' features overflow torch.float32"):
        loss(torch.full((4, 6), 1e25), torch.randn(4, 6), torch.arange(4))


def test_ramp_takes_both_factors_or_none_and_stays_fp32():
    loss = WCoRDLoss(6, 6, 20, num_negatives=5, seed=0)
    loss.half().ramp(gckt=0.5)
    with pytest.raises(ValueError, match=r"^lckt: expected a number that is finite in torch.float32, got 1e\+300"):
        loss.ramp(gckt=0.25, lckt=1e300)
    loss.ramp(gckt=0.5, lckt=1e-9)
    assert loss.half()._factors.tolist() == pytest.approx([0.5, 1e-9]) and loss.terms["lckt"].dtype == torch.float32
