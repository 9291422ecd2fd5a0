"""The baselines against the published formulas in float64: values, gradients and refused inputs."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from wcord_fast.distill import METHODS, Batch, Outputs, Pair, build, options_for

B = 6
STUDENT = ((4, 8, 8), (4, 8, 8), (6, 4, 4), (8, 2, 2), (8,))
TEACHER = ((6, 8, 8), (6, 8, 8), (9, 4, 4), (12, 2, 2), (12,))
# Stages of other sizes than the student's, as between families.
SMALLER = ((6, 4, 4), (6, 4, 4), (9, 2, 2), (12, 1, 1), (12,))
LARGER = ((6, 16, 16), (6, 16, 16), (9, 8, 8), (12, 4, 4), (12,))


def pair(student=STUDENT, teacher=TEACHER):
    return Pair(student, teacher, classes=5, teacher_classes=5, num_data=40, labels=None, seed=0)


def method(name, shapes, **options):
    torch.manual_seed(1)
    section = METHODS[name].options(**options)
    return build(name, shapes, options_for(name, section)).double()


def features(shapes, seed, batch=B):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, *s, generator=g, dtype=torch.float64, requires_grad=True) for s in shapes]


def run(name, shapes, batch=B, **options):
    """(method, student features, teacher features, loss)"""
    m = method(name, shapes, **options)
    s, t = features(shapes.student_shapes, 2, batch), features(shapes.teacher_shapes, 3, batch)
    logits = torch.zeros(batch, 5, dtype=torch.float64)
    rows = torch.arange(batch)
    loss = m(Outputs(s, logits), Outputs(t, logits), Batch(torch.zeros(batch, 1, 8, 8), rows % 5, rows))
    return m, s, t, loss


def pooled(s, t):
    if s.shape[2] > t.shape[2]:
        s = F.adaptive_avg_pool2d(s, t.shape[2])
    elif s.shape[2] < t.shape[2]:
        t = F.adaptive_avg_pool2d(t, s.shape[2])
    return s, t


# ---- the formulas, as the public code computes them; `m` gives the modules that a method trains


def fitnet(m, s, t):
    return (m.regressor(s[2]) - t[2]).pow(2).mean()


def at(m, s, t):
    total = 0
    for a, b in zip(s[1:-1], t[1:-1], strict=True):
        a, b = (f.pow(2).mean(1).reshape(B, -1) for f in pooled(a, b))
        total = total + (a / a.norm(dim=1, keepdim=True) - b / b.norm(dim=1, keepdim=True)).pow(2).mean()
    return total


def sp(m, s, t):
    grams = []
    for f in (s[-2], t[-2]):
        f = f.reshape(B, -1)
        g = torch.stack([torch.stack([(f[i] * f[j]).sum() for j in range(B)]) for i in range(B)])
        grams.append(g / g.norm(dim=1, keepdim=True))
    return (grams[0] - grams[1]).pow(2).sum() / B**2


def cc(m, s, t):
    e_s = s[-1] @ m.embed_s.weight.T + m.embed_s.bias
    e_t = t[-1] @ m.embed_t.weight.T + m.embed_t.bias
    delta = (e_s - e_t).abs()
    return torch.stack([(delta[b] * delta[b + 1]).sum() for b in range(B - 1)]).mean()


def vid(m, s, t):
    total = 0
    for stage, a, b in zip(m.stages, s[1:-1], t[1:-1], strict=True):
        a, b = pooled(a, b)
        w1, w2, w3 = (layer.weight[:, :, 0, 0] for layer in (stage.regressor[i] for i in (0, 2, 4)))
        mean = torch.einsum("oc,bchw->bohw", w1, a).relu()
        mean = torch.einsum("oc,bchw->bohw", w3, torch.einsum("oc,bchw->bohw", w2, mean).relu())
        variance = torch.log(1 + torch.exp(stage.log_scale)).view(1, -1, 1, 1) + 1e-5
        total = total + (0.5 * ((mean - b) ** 2 / variance + torch.log(variance))).mean()
    return total


def rkd(m, s, t):
    def distances(e):
        square = e.pow(2).sum(1)
        d = (square[:, None] + square[None] - 2 * e @ e.T).clamp(min=1e-12).sqrt()
        d = d * (1 - torch.eye(len(e), dtype=e.dtype))
        return d / d[d > 0].mean()

    def angles(e):
        n = F.normalize(e[None] - e[:, None], dim=2)
        return n @ n.transpose(1, 2)

    return 25 * F.smooth_l1_loss(distances(s[-1]), distances(t[-1])) + 50 * F.smooth_l1_loss(
        angles(s[-1]), angles(t[-1])
    )


def pkt(m, s, t):
    p = []
    for f in (s[-1], t[-1]):
        f = f / (torch.sqrt((f**2).sum(1, keepdim=True)) + 1e-7)
        c = (f @ f.T + 1) / 2
        p.append(c / c.sum(1, keepdim=True))
    return (p[1] * torch.log((p[1] + 1e-7) / (p[0] + 1e-7))).mean()


def nst(m, s, t):
    def kernel(a, b):
        return (a.unsqueeze(1) * b.unsqueeze(2)).sum(-1).pow(2).mean()

    total = 0
    for a, b in zip(s[1:-1], t[1:-1], strict=True):
        a, b = (F.normalize(f.reshape(B, f.shape[1], -1), dim=2) for f in pooled(a, b))
        total = total + kernel(b, b).detach() + kernel(a, a) - 2 * kernel(a, b)
    return total


FORMULAS = {"fitnet": (fitnet, 100), "at": (at, 1000), "sp": (sp, 3000), "cc": (cc, 0.02), "vid": (vid, 1)}
FORMULAS |= {"rkd": (rkd, 1), "pkt": (pkt, 30000), "nst": (nst, 50)}
SHAPES = {"equal": TEACHER, "smaller": SMALLER, "larger": LARGER}


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("name", FORMULAS)
def test_value_and_gradients_equal_the_published_formula(name, shapes):
    formula, weight = FORMULAS[name]
    m, s, t, loss = run(name, pair(teacher=SHAPES[shapes]))
    expected = formula(m, s, [f.detach() for f in t])
    (term,) = loss.terms.values()
    torch.testing.assert_close(term, expected.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(loss.value, weight * expected, rtol=1e-9, atol=1e-12)
    inputs = [*s, *m.parameters()]
    ours = torch.autograd.grad(loss.value, inputs, allow_unused=True)
    theirs = torch.autograd.grad(weight * expected, inputs, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
    assert not term.requires_grad


@pytest.mark.parametrize("name", FORMULAS)
def test_the_teacher_gets_no_gradient(name):
    _, _, t, loss = run(name, pair())
    assert all(g is None for g in torch.autograd.grad(loss.value, t, allow_unused=True))


@pytest.mark.parametrize("name", FORMULAS)
def test_a_batch_of_one_image_is_finite(name):
    _, s, _, loss = run(name, pair(), batch=1)
    assert math.isfinite(loss.value.item())
    grads = torch.autograd.grad(loss.value, s, allow_unused=True)
    assert all(g is None or bool(torch.isfinite(g).all()) for g in grads)


@pytest.mark.parametrize("positions", [1, 9, 64])
def test_both_forms_of_nst_agree(positions):
    """Many positions take the channel products, few the Gram matrix of positions."""
    side = int(positions**0.5)
    shapes = [((2, 2, 2), (5, side, side), (3,)), ((2, 2, 2), (7, side, side), (4,))]
    m, s, t, loss = run("nst", pair(*shapes))
    torch.testing.assert_close(loss.value, 50 * nst(m, s, t), rtol=1e-10, atol=1e-12)


def test_nst_of_dead_channels_is_finite_in_half_precision():
    m = method("nst", pair()).float()
    s, t = ([f.detach().half() for f in features(shapes, 2)] for shapes in (STUDENT, TEACHER))
    s[1][:, 0] = t[2][:, 1] = 0
    logits, rows = torch.zeros(B, 5), torch.arange(B)
    value = m(Outputs(s, logits), Outputs(t, logits), Batch(None, rows % 5, rows)).value
    assert value.dtype == torch.float32 and math.isfinite(value.item())


def test_rkd_in_chunks_equals_rkd(monkeypatch):
    whole = run("rkd", pair())
    monkeypatch.setattr("wcord_fast.distill.rkd.CHUNK_ELEMENTS", 1)
    chunked = run("rkd", pair())
    torch.testing.assert_close(chunked[3].value, whole[3].value, rtol=1e-12, atol=0)
    grads = [torch.autograd.grad(r[3].value, r[1][-1])[0] for r in (whole, chunked)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-14)


def test_rkd_survives_duplicates():
    m = method("rkd", pair())
    s, t = features(STUDENT, 2), features(TEACHER, 3)
    s[-1].data[1] = s[-1].data[0]
    loss = m.distance(s, t)
    assert bool(torch.isfinite(torch.autograd.grad(loss, s[-1])[0]).all())
    torch.testing.assert_close(loss, rkd(m, s, t), rtol=1e-9, atol=0)


@pytest.mark.parametrize("initial", [1e-3, 3.0, 1000.0])  # exp(1000) overflows
def test_vid_starts_at_its_variance(initial):
    m = method("vid", pair(), initial_variance=initial)
    variance = F.softplus(m.stages[0].log_scale) + 1e-5
    torch.testing.assert_close(variance, torch.full((6,), initial).double(), rtol=1e-6, atol=0)


REFUSED = {
    "stages": ("at", pair(student=STUDENT[1:]), r"at: .*the student has 2 of them and the teacher 3"),
    "no stages": ("nst", pair(STUDENT[-2:], TEACHER[-2:]), r"nst: .*there are none"),
    "vectors": ("vid", pair(((4,), (4,), (4,)), ((4,), (4,), (4,))), r"vid: compares feature maps .*is \[4\]"),
    "layer": ("fitnet", pair(STUDENT[-2:]), r"layer: expected .* 0 .. 1, got 2"),
    "too large": ("fitnet", pair(teacher=(*TEACHER[:2], (9, 7, 7), (12,))), r"fitnet: .*\[6, 4, 4\] cannot"),
    "no vector": ("pkt", pair(STUDENT[:-1]), r"student: expected its last feature to be a vector"),
    "one feature": ("sp", pair(STUDENT[-1:]), r"sp: .*only one feature"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_unsupported_pair_is_refused_with_the_reason(case):
    name, shapes, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        method(name, shapes)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("at", {"weight": -1.0}, "weight: .*-1"),
        ("vid", {"initial_variance": 1e-6}, "initial_variance: .*1e-06"),
        ("fitnet", {"layer": -1}, "layer: .*-1"),
        ("rkd", {"angle_weight": float("nan")}, "angle_weight: .*nan"),
        ("cc", {"feat_dim": 0}, "feat_dim: .*0"),
    ],
)
def test_bad_options_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        METHODS[name].options(**options)
