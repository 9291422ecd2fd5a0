"""WCoRDLoss: both terms against their formulas, critics, options, and the direction in which it trains."""

from __future__ import annotations

import math

import pytest
import torch

from wcord_fast import CRDLoss, WCoRDLoss
from wcord_fast import functional as F

N, K, S_DIM, T_DIM, D, B = 60, 15, 10, 14, 8, 9
LABELS = torch.arange(N) % 4


def loss_module(**options) -> WCoRDLoss:
    torch.manual_seed(1)
    options = {"feat_dim": D, "num_negatives": K, "labels": LABELS, "seed": 9} | options
    return WCoRDLoss(S_DIM, T_DIM, N, **options).double()


def batch(step=0):
    g = torch.Generator().manual_seed(100 + step)
    f_s = torch.randn(B, S_DIM, generator=g, dtype=torch.float64)
    f_t = torch.randn(B, T_DIM, generator=g, dtype=torch.float64)
    return f_s, f_t, torch.randperm(N, generator=g)[:B]


def embeddings(module, f_s, f_t):
    """e_s, e_t by the weights as they are, without a power iteration."""
    training = module.training
    module.eval()
    e = module.embed_s(f_s), module.embed_t(f_t)
    module.train(training)
    return e


def test_nce_critic_is_minus_crd():
    wcord = loss_module(critic="nce", lambda_gckt=0.7, lambda_lckt=0.0)
    torch.manual_seed(1)
    crd = CRDLoss(S_DIM, T_DIM, N, feat_dim=D, nce_k=K, labels=LABELS, seed=9).double()
    for step in range(3):
        args = batch(step)
        torch.testing.assert_close(wcord(*args), 0.7 * crd(*args), rtol=1e-12, atol=0)
    assert set(wcord.state_dict()) == set(crd.state_dict())


def test_lckt_is_the_transport_cost_of_the_embeddings():
    module = loss_module(lambda_gckt=0.0, lambda_lckt=0.3).eval()
    f_s, f_t, idx = batch()
    e_s, e_t = embeddings(module, f_s, f_t)
    expected = F.ot_cost(e_s, e_t, solver="ipot", eps=0.5, iters=50)
    torch.testing.assert_close(module(f_s, f_t, idx), 0.3 * expected)
    torch.testing.assert_close(module.terms["lckt"], expected.detach())
    total = loss_module(lambda_gckt=0.0, lambda_lckt=0.3, lckt_reduction="sum").eval()(f_s, f_t, idx)
    torch.testing.assert_close(total, 0.3 * B * expected)
    assert not any(p.requires_grad for p in module.embed_t.parameters())


def test_terms_add_up():
    module = loss_module(lambda_gckt=0.8, lambda_lckt=0.05)
    loss = module(*batch())
    terms = module.terms
    torch.testing.assert_close(loss, -0.8 * terms["gckt"] + 0.05 * terms["lckt"])
    assert not terms["gckt"].requires_grad


def test_lckt_does_not_train_the_teacher_s_embedding():
    grads = []
    for weight in (0.0, 5.0):
        module = loss_module(lambda_lckt=weight)
        module(*batch()).backward()
        grads.append(module.embed_t.linear.bias.grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize("trains", [True, False])
def test_only_the_student_gets_a_gradient(trains):
    module = loss_module(lambda_gckt=0.0, lambda_lckt=1.0, lckt_trains_embed=trains, critic="nce")
    f_s, f_t, idx = batch()
    f_s.requires_grad_()
    module(f_s, f_t, idx).backward()
    assert f_s.grad.abs().sum() > 0
    assert (module.embed_s.linear.weight.grad is not None) == trains


def test_raw_features():
    torch.manual_seed(0)
    module = WCoRDLoss(S_DIM, S_DIM, N, lambda_gckt=0.0, lckt_features="raw", lambda_lckt=1.0).double()
    f_s, _, idx = batch()
    f_t = torch.randn_like(f_s)
    torch.testing.assert_close(module(f_s, f_t, idx), F.ot_cost(f_s, f_t))
    with pytest.raises(ValueError, match="equal widths, got s_dim=10 and t_dim=14"):
        WCoRDLoss(S_DIM, T_DIM, N, lckt_features="raw")


@pytest.mark.parametrize("exclude", ["class", "self", "none"])
def test_dual_in_the_batch_by_loops(exclude):
    module = loss_module(critic="dual", exclude=exclude, lambda_gckt=1.0, lambda_lckt=0.0, neg_weight=1.5).eval()
    f_s, f_t, idx = batch()
    e_s, e_t = embeddings(module, f_s, f_t)
    total = 0.0
    for anchor, other in ((e_s, e_t), (e_t, e_s)):
        for b in range(B):
            others = [
                j
                for j in range(B)
                if exclude == "none"
                or (exclude == "self" and j != b)
                or (exclude == "class" and LABELS[idx[j]] != LABELS[idx[b]])
            ]
            negative = sum(anchor[b] @ other[j].detach() for j in others) / len(others)
            total = total + (anchor[b] @ other[b].detach() - 1.5 * negative) / B
    loss = module(f_s, f_t, idx)
    torch.testing.assert_close(loss, -4.0 * total)
    ours = torch.autograd.grad(loss, list(module.embed_s.parameters()))
    expected = torch.autograd.grad(-4.0 * total, list(module.embed_s.parameters()))
    torch.testing.assert_close(ours, expected)
    assert module.contrast is None


def test_dual_in_the_bank():
    f_s, f_t, idx = batch()
    for form in ("bank", "bank_negatives"):
        module = loss_module(critic="dual", negatives=form, lambda_lckt=0.0, lambda_gckt=1.0)
        module.eval()
        e = embeddings(module, f_s, f_t)
        banks = module.contrast.memory_v2.rows, module.contrast.memory_v1.rows
        rows = module.contrast.sampler.draw(idx)
        total = 0.0
        for side in range(2):
            positive = banks[side][idx] if form == "bank" else e[1 - side]
            total = (
                total
                + (e[side] * positive).sum(1).mean()
                - torch.einsum("bd,bkd->bk", e[side], banks[side][rows]).mean()
            )
        torch.testing.assert_close(module(f_s, f_t, idx), -4.0 * total)


def test_weight_m_is_the_number_of_negatives():
    f_s, f_t, idx = batch()
    for options, count in (({"negatives": "bank"}, K), ({"negatives": "bank", "num_negatives": "all"}, 45)):
        a = loss_module(critic="dual", neg_weight="M", lambda_lckt=0.0, **options)(f_s, f_t, idx)
        b = loss_module(critic="dual", neg_weight=count, lambda_lckt=0.0, **options)(f_s, f_t, idx)
        torch.testing.assert_close(a, b)


def test_an_anchor_without_negatives_in_the_batch_takes_no_part():
    module = loss_module(critic="dual", lambda_lckt=0.0)
    f_s, f_t, _ = batch()
    assert module(f_s, f_t, torch.arange(0, 4 * B, 4)) == 0  # one class only


def test_ball_norm_is_one_lipschitz_and_inside_the_ball():
    module = loss_module(embed_norm="ball", critic="dual").eval()
    with torch.no_grad():
        f, g = (
            torch.randn(200, S_DIM, dtype=torch.float64) * 3,
            torch.randn(200, S_DIM, dtype=torch.float64) * 3,
        )
        a, b = module.embed_s(f), module.embed_s(g)
    assert a.norm(dim=1).max() <= 1 + 1e-12
    assert ((a - b).norm(dim=1) <= (f - g).norm(dim=1) * (1 + 1e-3)).all()


def test_spectral_norm_is_on_for_dual_and_nce_sn_only():
    for critic, spectral in (("nce_sn", True), ("dual", True), ("nce", False)):
        module = loss_module(critic=critic)
        assert module.embed_s.linear.spectral == spectral
        if spectral:
            module.eval()
            sigma = torch.linalg.matrix_norm(module.embed_s.frozen_weight(), 2)
            assert 0.98 < sigma < 1.02


def test_one_power_iteration_per_training_forward():
    module = loss_module()
    linear = module.embed_s.linear
    u = linear.u
    expected = torch.nn.functional.normalize(linear.weight.detach() @ linear.v, dim=0)
    module(*batch())
    torch.testing.assert_close(u, expected)


def test_plain_weights_load_into_a_spectrally_normalised_embedding():
    plain = loss_module(critic="nce")
    spectral = loss_module(critic="nce_sn").eval()
    spectral.load_state_dict(plain.state_dict())
    weight = plain.embed_s.linear.weight
    torch.testing.assert_close(
        spectral.embed_s.frozen_weight(), (weight / torch.linalg.matrix_norm(weight, 2)).detach()
    )


@pytest.mark.parametrize("critic", ["nce_sn", "nce", "dual"])
def test_training_the_loss_alone_raises_positives_above_negatives(critic):
    """GCKT is maximised: with the right sign, pairs of one image end with higher scores than other pairs."""
    torch.manual_seed(0)
    n = 256
    labels = torch.arange(n) % 8
    f_t = torch.randn(8, 16)[labels] + 0.7 * torch.randn(n, 16)
    student = torch.nn.Linear(16, 12)
    loss_fn = WCoRDLoss(12, 16, n, feat_dim=16, critic=critic, num_negatives=64, labels=labels, lambda_lckt=0.0, seed=0)
    sgd = torch.optim.SGD([*student.parameters(), *loss_fn.parameters()], lr=0.1, momentum=0.9)
    for _ in range(240):
        idx = torch.randperm(n)[:64]
        loss = loss_fn(student(f_t[idx]), f_t[idx], idx)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    loss_fn.eval()
    with torch.no_grad():
        score = loss_fn.embed_s(student(f_t)) @ loss_fn.embed_t(f_t).T
    positive = score.diagonal().mean()
    negative = score[labels[:, None] != labels[None]].mean()
    assert positive > negative + 0.3, (positive, negative)


def test_resume_is_exact():
    a, b = loss_module(), loss_module(seed=77)
    for step in range(3):
        a(*batch(step))
    b.load_state_dict(a.state_dict())
    for step in range(3, 5):
        assert torch.equal(a(*batch(step)), b(*batch(step)))
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_refused_call_changes_nothing():
    module = loss_module()
    f_s, f_t, idx = batch()
    f_t[3, 0] = math.nan
    before = {k: v.clone() for k, v in module.state_dict().items()}
    with pytest.raises(ValueError, match="f_t: row 3 holds nan"):
        module(f_s, f_t, idx)
    assert all(torch.equal(before[k].nan_to_num(-7), v.nan_to_num(-7)) for k, v in module.state_dict().items())


BAD = [
    ({"critic": "nce_ns"}, ValueError, "critic.*did you mean"),
    ({"lambda_gckt": -0.1}, ValueError, "lambda_gckt"),
    ({"lambda_lckt": math.nan}, ValueError, "lambda_lckt"),
    ({"temperature": 0.0}, ValueError, "temperature"),
    ({"momentum": 1.5}, ValueError, "momentum"),
    ({"negatives": "batch"}, ValueError, "negatives: 'batch' needs critic='dual'"),
    ({"critic": "dual", "neg_weight": "N"}, ValueError, "neg_weight"),
    ({"embed_norm": "cube"}, ValueError, "embed_norm"),
    ({"lckt_features": "logits"}, ValueError, "lckt_features"),
    ({"lckt_reduction": "none"}, ValueError, "lckt_reduction"),
    ({"ot_eps": 0}, ValueError, "ot_eps"),
    ({"ot_iters": 0}, ValueError, "ot_iters"),
    ({"ot_solver": "emd"}, ValueError, "ot_solver"),
    ({"labels": LABELS[:5]}, ValueError, "labels"),
    ({"feat_dim": 0}, ValueError, "feat_dim"),
    ({"bank_dtype": torch.int8}, TypeError, "dtype"),
    ({"plan": "sparse"}, ValueError, "plan"),
    ({"num_negatives": 46, "replacement": False}, ValueError, "45 rows"),
    ({"temp": 0.1}, TypeError, "did you mean 'temperature'"),
    ({"lambda1": 0.1}, TypeError, "did you mean 'lambda_gckt'"),
    ({"lambda2": 0.1}, TypeError, "did you mean 'lambda_lckt'"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD)
def test_bad_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        loss_module(**options)


@pytest.mark.parametrize("critic", ["nce_sn", "dual"])
def test_the_weighted_terms_add_up_to_the_loss_with_its_gradient(critic):
    torch.manual_seed(0)
    loss = WCoRDLoss(S_DIM, T_DIM, N, critic=critic, num_negatives=8, lambda_lckt=0.5, seed=1).eval()
    f_s, f_t, idx = torch.randn(6, S_DIM, requires_grad=True), torch.randn(6, T_DIM), torch.arange(6)
    whole = loss(f_s, f_t, idx)
    terms = loss.weighted_terms(f_s, f_t, idx)
    assert set(terms) == {"gckt", "lckt"}
    torch.testing.assert_close(sum(terms.values()), whole)
    parts = [torch.autograd.grad(term, f_s, retain_graph=True)[0] for term in terms.values()]
    torch.testing.assert_close(sum(parts), torch.autograd.grad(whole, f_s)[0], rtol=1e-4, atol=1e-6)
    assert all(part.abs().max() > 0 for part in parts)
