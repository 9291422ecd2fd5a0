"""The loss modules refuse before they change anything, and keep state that must not be rounded or lost."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from wcord_fast import CRDLoss, FeatureQueue, MemoryBank, NegativeSampler, WCoRDLoss
from wcord_fast import functional as F
from wcord_fast.nn.embed import Embed
from wcord_fast.ops.bank.op import update_op
from wcord_fast.ops.sampling.alias import alias_table

N, K, S_DIM, T_DIM, D, B = 40, 7, 5, 6, 8, 4


def losses(**options):
    torch.manual_seed(1)
    return (
        CRDLoss(S_DIM, T_DIM, N, feat_dim=D, nce_k=K, seed=9, **options),
        WCoRDLoss(S_DIM, T_DIM, N, feat_dim=D, num_negatives=K, seed=9, **options),
    )


def batch():
    g = torch.Generator().manual_seed(3)
    return torch.randn(B, S_DIM, generator=g), torch.randn(B, T_DIM, generator=g), torch.tensor([3, 0, 29, 3])


def snapshot(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def unchanged(module, before):
    return all(torch.equal(before[k].nan_to_num(-7), v.nan_to_num(-7)) for k, v in module.state_dict().items())


@pytest.mark.parametrize("log_z", [720.0, 100.0, -200.0, 3.0])
def test_a_state_dict_holds_any_log_z(log_z):
    for module, other in zip(losses(), losses(), strict=True):
        module.contrast.log_z.copy_(torch.tensor([log_z, math.nan]))
        state = module.state_dict()
        other.load_state_dict(state)
        assert other.contrast.log_z[0] == log_z and other.contrast.log_z[1].isnan()
        state = module.repdistiller_state_dict()
        assert torch.isfinite(state["contrast.params"]).all() and state["contrast.params"].dtype == torch.float32
        assert state["contrast.params"][3] == -1
        other = type(other)(S_DIM, T_DIM, N, feat_dim=D, **{"nce_k" if type(other) is CRDLoss else "num_negatives": K})
        other.load_state_dict(state)
        assert torch.isfinite(other.contrast.log_z[0]) and other.contrast.log_z[1].isnan()


@pytest.mark.parametrize("cast", ["half", "bfloat16"])
def test_casting_to_half_keeps_log_z(cast):
    f_s, f_t, idx = batch()
    for module in losses():
        module(f_s, f_t, idx)
        log_z, state = module.contrast.log_z.clone(), module.contrast.sampler.state.clone()
        module.eval()
        expected = module(f_s, f_t, idx)
        getattr(module, cast)()
        assert module.contrast.log_z.dtype == torch.float32 and torch.equal(module.contrast.log_z, log_z)
        assert torch.equal(module.contrast.sampler.state, state)
        torch.testing.assert_close(module(f_s, f_t, idx).float(), expected, rtol=0.05, atol=0)


def test_class_sums_do_not_outlive_the_rows_they_were_made_from():
    bank, negatives = MemoryBank(N, D, seed=1), NegativeSampler(N, "all", exclude="none", seed=0)
    x, index = torch.randn(B, D), torch.arange(B)
    F.bank_mean_score(x, bank, index, negatives=negatives)
    other = {"rows": torch.randn(N, D)}
    bank.load_state_dict(other, assign=True)
    torch.testing.assert_close(F.bank_mean_score(x, bank, index, negatives=negatives), x @ other["rows"].mean(0))


def test_a_refused_state_dict_changes_nothing():
    for module, options in zip(losses(), ({"nce_k": 9}, {"num_negatives": 9}), strict=True):
        before = snapshot(module)
        cls = type(module)
        for other, message in (
            (cls(S_DIM, T_DIM, N, feat_dim=D, **options), "K = 9, this loss has 7"),
            (cls(S_DIM, T_DIM, N + 1, feat_dim=D, **{next(iter(options)): K}), "size mismatch.*memory_v1"),
            (cls(S_DIM, T_DIM + 1, N, feat_dim=D, **{next(iter(options)): K}), "size mismatch.*embed_t"),
        ):
            with pytest.raises(RuntimeError, match=message):
                module.load_state_dict(other.state_dict())
            assert unchanged(module, before)


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("value", [math.nan, 3e38])
@pytest.mark.parametrize("critic", ["nce", "nce_sn"])
def test_bad_features_are_named_and_change_nothing(side, value, critic):
    crd, wcord = losses()
    if critic == "nce":
        wcord = WCoRDLoss(S_DIM, T_DIM, N, feat_dim=D, num_negatives=K, critic="nce")
    for module in (crd, wcord):
        features = list(batch())
        embed = (module.embed_s, module.embed_t)[side]
        features[side][2] = value * torch.sign(embed.frozen_weight()[0])
        if critic == "nce" or module is crd:
            embed.linear.weight.data.mul_(10)
        else:
            embed.linear.v.mul_(0.1)  # a sigma ten times too small
        before = snapshot(module)
        for call in (module, module.init_banks):
            named = pytest.raises(ValueError, match=rf"{'f_s' if side == 0 else 'f_t'}: row 2 holds")
            with named, torch.autocast("cpu", torch.bfloat16):
                call(*features)
            assert unchanged(module, before)


def test_a_zero_row_of_raw_features_is_named():
    module = WCoRDLoss(S_DIM, S_DIM, N, num_negatives=K, lckt_features="raw", lambda_lckt=1.0)
    f, _, idx = batch()
    zero = f.clone()
    zero[1] = 0
    before = snapshot(module)
    for args, name in (((zero, f), "f_s"), ((f, zero), "f_t")):
        with pytest.raises(ValueError, match=f"{name}: row 1 is zero"):
            module(*args, idx)
        assert unchanged(module, before)


def test_a_frozen_embedding_does_not_drift():
    module = WCoRDLoss(S_DIM, T_DIM, N, lambda_gckt=0.0, lambda_lckt=1.0)
    before = snapshot(module.embed_t)
    for _ in range(3):
        module.train()(*batch())
    assert unchanged(module.embed_t, before) and module.embed_s.training


@pytest.mark.parametrize("scale", [1e19, 1e30])
def test_the_embedding_of_a_huge_feature_is_a_unit_row(scale):
    embed = Embed(S_DIM, D)
    torch.nn.init.zeros_(embed.linear.bias)
    f = batch()[0]
    small, large = f.clone().requires_grad_(), (f * scale).requires_grad_()
    weights = torch.randn(B, D, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(embed(large), embed(small))
    (embed(small) * weights).sum().backward()
    (embed(large) * weights).sum().backward()
    torch.testing.assert_close(large.grad * scale, small.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "rows_dtype", "value"),
    [
        (torch.float32, torch.float64, 1e300),
        (torch.float32, torch.float32, 3e38),
        (torch.float64, torch.float64, 1e300),
    ],
)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_rows_that_overflow_are_refused_and_nothing_is_written(dtype, rows_dtype, value, backend):
    bank, index = torch.randn(N, D).to(dtype), torch.arange(B)
    before, rows = bank.clone(), torch.ones(B, D, dtype=rows_dtype)
    rows[2] = -value
    with pytest.raises(ValueError, match=r"rows: row 2 holds up to -.*e\+.*expected .* finite"):
        update_op(bank, index, rows, 0.5, backend)
    assert torch.equal(bank, before)
    rows[2] = 1e15
    update_op(bank, index, rows, 0.5, backend)
    torch.testing.assert_close(bank[2].double().norm(), torch.tensor(1.0, dtype=torch.float64))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_an_update_is_seen_by_autograd(backend):
    bank, x = torch.randn(N, D), torch.randn(B, D, requires_grad=True)
    loss = (x @ bank.T).sum()
    update_op(bank, torch.arange(B), torch.randn(B, D), 0.5, backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_batch_form_takes_no_contrast_idx():
    module = WCoRDLoss(S_DIM, T_DIM, N, critic="dual")
    f_s, f_t, idx = batch()
    with pytest.raises(ValueError, match="contrast_idx: negatives='batch' takes no bank rows"):
        module(f_s, f_t, idx, torch.zeros(B, 3, dtype=torch.int64))


@pytest.mark.parametrize("negatives", ["batch", "bank"])
def test_compiled_code_never_reads_out_of_range(negatives):
    module = WCoRDLoss(
        S_DIM, T_DIM, N, feat_dim=D, critic="dual", negatives=negatives, num_negatives=K, lambda_lckt=0.0, seed=1
    ).eval()
    f_s, f_t, idx = batch()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(f_s, f_t, idx), module(f_s, f_t, idx))
    idx[1] = N
    if negatives == "batch":
        assert compiled(f_s, f_t, idx).isnan()
    else:
        with pytest.raises(ValueError, match=r"index\[1\]: expected a row in \[0, 40\), got 40"):
            compiled(f_s, f_t, idx)
    assert torch.is_grad_enabled()  # an error within no_grad in compiled code leaves it off for good


UNBUILT = [
    ({"num_negatives": -5}, ValueError, "num_negatives"),
    ({"temperature": -1.0}, ValueError, "temperature"),
    ({"momentum": 7.0}, ValueError, "momentum"),
    ({"z": "foo"}, ValueError, "z: expected"),
    ({"plan": "zzz"}, ValueError, "plan"),
    ({"seed": "s"}, TypeError, "seed"),
    ({"seed": 2**64}, ValueError, "seed"),
    ({"bank_dtype": 3}, TypeError, "bank_dtype"),
    ({"backend": None}, ValueError, "backend"),
    ({"replacement": 0}, TypeError, "replacement"),
    ({"labels": [1, 2]}, ValueError, "labels"),
    ({"exclude": "class"}, ValueError, "exclude"),
    ({"lckt_trains_embed": "False"}, TypeError, "lckt_trains_embed: expected True or False, got 'False'"),
]


@pytest.mark.parametrize("base", [{"critic": "dual"}, {"lambda_gckt": 0.0}, {}])
@pytest.mark.parametrize(("options", "error", "message"), UNBUILT)
def test_options_are_checked_whether_or_not_they_are_used(base, options, error, message):
    with pytest.raises(error, match=message):
        WCoRDLoss(S_DIM, T_DIM, N, **base, **options)


@pytest.mark.parametrize("value", [0, 1, "no", torch.tensor(False)])
def test_replacement_and_expected_are_booleans(value):
    with pytest.raises(TypeError, match="replacement: expected None, True or False"):
        NegativeSampler(20, 30, replacement=value)
    with pytest.raises(TypeError, match="expected: expected True or False"):
        NegativeSampler(20, 10, expected=value)


def test_numpy_booleans_count():
    assert NegativeSampler(20, 10, replacement=np.True_).replacement == "yes"
    with pytest.raises(ValueError, match="replacement=False"):
        NegativeSampler(20, 30, replacement=np.False_)


@pytest.mark.parametrize(
    "weights", [[1e308, 1e308, 0.0], [1e-320, 0.0, 0.0], [5e-324, 0.0, 5e-324], [0.0, 1e308, 1e-300], [0.1, 0.2, 0.0]]
)
def test_a_row_of_zero_weight_is_never_drawn(weights):
    w = torch.tensor(weights, dtype=torch.float64)
    threshold, alias = alias_table(w)
    mass = torch.zeros(3, dtype=torch.float64)  # of each row, from the table
    for i, (t, other) in enumerate(zip(threshold.tolist(), alias.tolist(), strict=True)):
        keep = (t % 2**64) / 2.0**64 if other != i else 1.0
        mass[i] += keep / 3
        mass[other] += (1 - keep) / 3
    torch.testing.assert_close(mass, (w / w.max()) / (w / w.max()).sum(), rtol=1e-12, atol=1e-15)
    assert (mass[w == 0] == 0).all()
    rows = NegativeSampler(3, 1000, weights=weights, seed=1).draw(torch.arange(3))
    assert set(rows.unique().tolist()) <= set(w.nonzero()[:, 0].tolist())


def test_arguments_beyond_32_bits_are_refused():
    with pytest.raises(ValueError, match=r"bank_id: expected an int below 4294967296, got 4294967296"):
        MemoryBank(4, 4, bank_id=2**32)
    with pytest.raises(ValueError, match="anchor_offset"):
        NegativeSampler(20, 3).draw(torch.arange(2), anchor_offset=2**32)


def test_a_cast_by_type_changes_no_integer():
    loss = CRDLoss(6, 6, 40, nce_k=5, feat_dim=4, seed=123456789012345)
    idx = torch.arange(4)
    expected = loss.contrast.sampler.draw(idx)
    for dtype in (torch.float64, torch.float16, torch.float32):
        torch.nn.Sequential(loss).type(dtype)
        assert loss.contrast.sampler.state.dtype == torch.int64
        assert torch.equal(loss.contrast.sampler.draw(idx), expected)
    queue = FeatureQueue(8, 4)
    queue.push_(torch.randn(3, 4))
    assert int(queue.type(torch.float64).pushed) == 3 and queue.pushed.dtype == torch.int64
    sampler = NegativeSampler(40, 5)
    sampler.state = sampler.state.double()
    with pytest.raises(TypeError, match="state: expected int64"):
        sampler.draw(idx)


def test_a_validation_in_inference_mode_leaves_class_sums_that_training_can_change():
    g = torch.Generator().manual_seed(0)
    f_s, f_t = torch.randn(4, 6, generator=g), torch.randn(4, 6, generator=g)
    idx, losses = torch.arange(4), []
    for validate in (False, True):
        torch.manual_seed(1)
        options = {"critic": "dual", "negatives": "bank", "num_negatives": "all", "labels": torch.arange(24) % 4}
        loss = WCoRDLoss(6, 6, 24, feat_dim=4, seed=3, **options)
        if validate:
            loss.eval()
            with torch.inference_mode():
                loss(f_s, f_t, idx)
            loss.train()
        losses.append([loss(f_s, f_t, idx).item() for _ in range(3)])
    assert losses[0] == losses[1]


def test_losses_per_anchor_can_be_changed_in_place():
    bank, idx = MemoryBank(40, 6, seed=1), torch.arange(4)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    negatives = NegativeSampler(40, 5, seed=1)
    for score in (
        lambda: F.bank_nce(x, bank, idx, negatives=negatives, log_z=torch.tensor(1.0)),
        lambda: F.bank_infonce(x, bank, idx, negatives=negatives),
        lambda: F.bank_sigmoid(x, bank, idx, negatives=negatives),
        lambda: F.bank_mean_score(x, bank, idx, negatives=negatives),
    ):
        weight = torch.tensor([2.0, 0.0, -1.0, 3.0])
        (expected,) = torch.autograd.grad((score() * weight).sum(), x)
        value = score()
        value *= weight
        assert torch.equal(torch.autograd.grad(value.sum(), x)[0], expected)


def test_ids_changed_before_the_backward_are_noticed():
    x, y = (torch.randn(4, 6, requires_grad=True) for _ in range(2))
    labels = torch.tensor([0, 1, 0, 2])
    for critic in (F.batch_infonce, F.batch_sigmoid):
        value = critic(x, y, labels=labels).sum()
        labels.fill_(7)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            value.backward()
        labels.copy_(torch.tensor([0, 1, 0, 2]))


def test_a_queue_scored_by_a_sampler_of_whole_pools():
    queue, x = FeatureQueue(8, 6), torch.randn(4, 6)
    queue.push_(torch.randn(8, 6))
    value = F.bank_mean_score(x, queue, torch.arange(4), negatives=NegativeSampler(8, "all"))
    others = queue.rows.sum(0) - queue.rows[:4]
    torch.testing.assert_close(value, (x * others).sum(1) / 7)


def test_numpy_counts_of_negatives_are_taken():
    loss = WCoRDLoss(6, 6, None, critic="infonce", negatives="queue", num_negatives=np.int64(8), feat_dim=4)
    assert {len(m.rows) for m in loss.modules() if isinstance(m, FeatureQueue)} == {8}


def test_images_of_unknown_number_are_no_pairs_of_each_other():
    g = torch.Generator().manual_seed(0)
    f_s, f_t = torch.randn(4, 6, generator=g), torch.randn(4, 6, generator=g)
    options = {"critic": "infonce", "negatives": "batch", "feat_dim": 8}
    torch.manual_seed(1)
    loss = WCoRDLoss(6, 6, None, lckt_pairs="prior", **options)
    known, unknown = loss.lckt_on_pairs(f_s, f_t), loss.lckt_on_pairs(f_s, f_t, torch.full((4,), -1))
    assert known == unknown < 1
    loss(f_s, f_t)
    expected = loss.terms["lckt"].clone()
    loss(f_s, f_t, torch.tensor([-1, -1, 5, -2]))
    assert loss.terms["lckt"] == expected


def test_a_frozen_student_embedding_asks_for_no_gradient():
    loss = WCoRDLoss(6, 6, 24, lambda_gckt=0, lckt_features="embed", lckt_trains_embed=False, feat_dim=4)
    assert not any(p.requires_grad for p in loss.embed_s.parameters())
    trains = WCoRDLoss(6, 6, 24, lambda_gckt=0, lckt_features="embed", feat_dim=4)
    assert all(p.requires_grad for p in trains.embed_s.parameters())


def test_weights_of_terms_keep_fp32_under_a_half_default_dtype():
    torch.set_default_dtype(torch.bfloat16)
    try:
        loss = WCoRDLoss(6, 6, 24, num_negatives=5, feat_dim=4)
        loss.ramp(gckt=0.3)
        assert loss._factors.tolist() == pytest.approx([0.3, 1.0], rel=1e-6)
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_plan_of_half_features_with_pairs_has_the_given_masses():
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(12, 5, generator=g) for _ in range(2))
    a, b = (torch.rand(12, generator=g) + 0.1 for _ in range(2))
    a, b = a / a.sum(), b / b.sum()
    plan = F.ot_plan(x.bfloat16(), y.bfloat16(), a=a, b=b, pairs="diagonal", solver="sinkhorn", eps=0.05, iters=400)
    torch.testing.assert_close(plan.sum(0), b, rtol=1e-5, atol=1e-7)
