"""DKD is the paper's eq. (7), in float64, term by term."""

import numpy as np
import pytest
import torch
from scipy.special import softmax

from wcord_fast import distill
from wcord_fast.distill.dkd import decoupled
from wcord_fast.distill.labelled import labelled_mean

from .test_distill import make, outputs, pair  # noqa: F401


def eq7(student, teacher, labels, temperature):
    target = others = 0.0
    for s, t, y in zip(student, teacher, labels, strict=True):
        p_s, p_t = softmax(s / temperature), softmax(t / temperature)
        b_s, b_t = (np.array([p[y], 1 - p[y]]) for p in (p_s, p_t))
        target += (b_t * np.log(b_t / b_s)).sum()
        q_s, q_t = (np.delete(p, y) / (1 - p[y]) for p in (p_s, p_t))
        others += (q_t * np.log(q_t / q_s)).sum()
    return temperature**2 * target / len(labels), temperature**2 * others / len(labels)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_both_terms_equal_the_papers_formula(temperature):
    rng = np.random.default_rng(0)
    s, t, labels = rng.normal(size=(7, 5)) * 3, rng.normal(size=(7, 5)) * 3, rng.integers(0, 5, 7)
    actual = decoupled(torch.from_numpy(s), torch.from_numpy(t), torch.from_numpy(labels), temperature)
    assert [float(x) for x in actual] == pytest.approx(eq7(s, t, labels, temperature), rel=1e-12)


def test_gradient_is_finite_and_equals_float64():
    torch.manual_seed(0)
    s, t, labels = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64), torch.arange(4)
    torch.autograd.gradcheck(lambda x: decoupled(x, t, labels, 4.0), s.requires_grad_())
    sure = torch.full((2, 3), -50.0).index_fill_(1, torch.tensor([1]), 50.0).requires_grad_()
    sum(decoupled(sure, sure.detach().flip(1), torch.tensor([1, 1]), 1.0)).backward()
    assert sure.grad.isfinite().all()


def test_both_terms_add_up_to_kds_divergence():
    """KL = TCKD + (1 - p) NCKD for one image (the paper's eq. 6)."""
    torch.manual_seed(0)
    s, t, labels = torch.randn(1, 6, dtype=torch.float64), torch.randn(1, 6, dtype=torch.float64), torch.tensor([2])
    target, others = decoupled(s, t, labels, 1.0)
    p = t.softmax(1)
    divergence = (p * (p.log() - s.log_softmax(1))).sum()
    torch.testing.assert_close(target + (1 - p[0, 2]) * others, divergence)


@pytest.mark.parametrize("name", ["dkd", "wkd"])
def test_rows_without_a_label_are_left_out(name, pair):  # noqa: F811
    method = make(name, pair)
    s, t, batch = outputs(pair)
    known = torch.tensor([0, 2, 3])
    labels = torch.full_like(batch.labels, -100).index_copy_(0, known, batch.labels[known])
    value, terms = method(s, t, batch._replace(labels=labels))
    rows = distill.Batch(batch.images[known], batch.labels[known], batch.index[known])
    part = [distill.Outputs([f[known] for f in out.feats], out.logits[known]) for out in (s, t)]
    expected = method(*part, rows)
    torch.testing.assert_close((value, terms), (expected.value, expected.terms), rtol=1e-6, atol=0)
    grads = [torch.autograd.grad(v, s.logits, retain_graph=True)[0] for v in (value, expected.value)]
    torch.testing.assert_close(*grads)
    assert not grads[0][[1, 4, 5]].any()
    none = method(s, t, batch._replace(labels=torch.full_like(labels, -100))).value
    assert none.item() == 0 and not torch.autograd.grad(none, s.logits)[0].any()


def test_the_mean_over_labelled_rows_is_the_mean_where_all_are():
    values = torch.randn(1001, generator=torch.Generator().manual_seed(0))
    for size in range(1, 1002, 50):
        assert torch.equal(labelled_mean(values[:size], torch.zeros(size, dtype=torch.int64)), values[:size].mean())


def test_weight_grows_over_its_ramp(pair):  # noqa: F811
    method = make("dkd", pair, ramp=2.0)
    student, teacher, batch = outputs(pair)
    values = []
    for done in (0, 5, 10, 20, 99):
        method.at_step(done, per_epoch=10, epochs=240)
        values.append(method(student, teacher, batch).value.item())
    full = values[-1]
    assert values == pytest.approx([0.0, 0.25 * full, 0.5 * full, full, full])


def test_dkd_refuses_unsupported_pairs_and_options(pair):  # noqa: F811
    student, teacher = pair
    with pytest.raises(distill.CannotServe, match="labels"):
        distill.create("dkd", student=student, teacher=teacher, example=torch.randn(2, 1, 8, 8), num_data=9)
