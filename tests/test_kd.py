"""Knowledge distillation on classes, tokens and maps, against the formula in float64, position by position."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from wcord_fast import KDLoss, functional

SHAPES = {"classes": ((5, 7), 1), "tokens": ((3, 4, 7), 2), "maps": ((2, 7, 3, 4), 1), "volumes": ((2, 3, 2, 7, 2), 3)}


def formula(s, t, temperature, mask, dim):
    """The mean over the kept positions of T^2 sum_c p_t (log p_t - log p_s), one position at a time."""
    s, t = s.movedim(dim, -1), t.movedim(dim, -1)
    total, count = s.new_zeros(()), 0
    for at in torch.cartesian_prod(*(torch.arange(n) for n in s.shape[:-1])).reshape(-1, s.dim() - 1).tolist():
        if mask is None or mask[tuple(at)]:
            a, b = (x[tuple(at)] / temperature for x in (s, t))
            p = b.exp() / b.exp().sum()
            q = a.exp() / a.exp().sum()
            total, count = total + temperature**2 * (p * (p / q).log()).sum(), count + 1
    return total / max(count, 1)


@pytest.mark.parametrize("masked", ["no", "some", "one", "all", "none"])
@pytest.mark.parametrize("kind", SHAPES)
def test_value_and_gradient_equal_the_formula(kind, masked):
    shape, dim = SHAPES[kind]
    generator = torch.Generator().manual_seed(0)
    s = torch.randn(shape, generator=generator, dtype=torch.float64).mul_(3).requires_grad_()
    t = torch.randn(shape, generator=generator, dtype=torch.float64).mul_(3)
    positions = (*shape[:dim], *shape[dim + 1 :])
    mask = {
        "no": None,
        "some": torch.rand(positions, generator=generator) < 0.6,
        "one": torch.zeros(positions, dtype=torch.bool).index_fill_(0, torch.tensor(0), True).cumsum(-1) == 1,
        "all": torch.ones(positions, dtype=torch.bool),
        "none": torch.zeros(positions, dtype=torch.bool),
    }[masked]
    named = dim if kind == "volumes" else None
    loss = KDLoss(2.5, dim=named)(s, t, mask)
    want = formula(s, t, 2.5, mask, dim)
    torch.testing.assert_close(loss, want, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(functional.kd_loss(s, t, temperature=2.5, mask=mask, dim=named), loss, rtol=0, atol=0)
    torch.testing.assert_close(functional.kd_loss(s, t, temperature=2.5, mask=mask, dim=dim - s.dim()), loss)
    (grad,) = torch.autograd.grad(loss, s)
    if masked == "none":
        assert loss.item() == 0 and not grad.any()
    else:
        torch.testing.assert_close(grad, torch.autograd.grad(want, s)[0], rtol=1e-10, atol=1e-14)


def test_plain_logits_keep_their_bits():
    s, t = torch.randn(6, 9), torch.randn(6, 9)
    log_s, log_t = F.log_softmax(s / 4.0, dim=1), F.log_softmax(t / 4.0, dim=1)
    assert torch.equal(KDLoss()(s, t), (log_t.exp() * (log_t - log_s)).sum() / 6 * 16)


def test_ignored_rows_and_classes_have_no_effect():
    s, t = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    mask = torch.tensor([[True, True, False], [False, True, True]])
    want = KDLoss()(s, t, mask)
    for fill in (float("nan"), float("inf"), -float("inf"), 1e38):
        bad_s, bad_t = (x.masked_fill(~mask[..., None], fill).requires_grad_() for x in (s, t))
        loss = KDLoss()(bad_s, bad_t, mask)
        loss.backward()
        assert torch.equal(loss, want) and bool(bad_s.grad.isfinite().all()) and not bad_s.grad[~mask].any()
        assert bad_t.grad is None
    kept = KDLoss()(s[mask], t[mask])
    torch.testing.assert_close(want, kept)
    half = functional.kd_loss(s.bfloat16(), t.bfloat16(), mask=mask)
    assert half.dtype == torch.float32
    compiled = torch.compile(KDLoss(), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(s, t, mask), want)


def test_a_student_that_excludes_a_class_of_the_teacher_has_infinite_loss():
    s, t = torch.randn(2, 5), torch.randn(2, 5)
    s[0, 1] = -float("inf")
    assert functional.kd_loss(s, t).item() == float("inf")
    t[0, 1] = -float("inf")
    assert functional.kd_loss(s, t).isfinite()


X, M = torch.randn(2, 3, 5), torch.ones(2, 3, dtype=torch.bool)
WRONG = {
    "mask dtype": (lambda: KDLoss()(X, X, M.float()), TypeError, "mask: expected dtype bool, got float32"),
    "mask kind": (lambda: KDLoss()(X, X, [True]), TypeError, "mask: expected a torch.Tensor, got list"),
    "mask shape": (lambda: KDLoss()(X, X, M[:, :2]), ValueError, r"mask: expected shape \[2, 3\], got \[2, 2\]"),
    "mask of maps": (lambda: KDLoss(dim=1)(X, X, M), ValueError, r"mask: expected shape \[2, 5\], got \[2, 3\]"),
    "shapes": (lambda: KDLoss()(X, X[:, :2]), ValueError, r"expected the shape of student_logits \[2, 3, 5\]"),
    "no class dimension": (lambda: KDLoss()(X[0, 0], X[0, 0]), ValueError, r"student_logits: expected shape \[B, C\]"),
    "five dimensions": (lambda: KDLoss()(X[None, None], X[None, None]), ValueError, "student_logits: expected shape"),
    "empty": (lambda: KDLoss()(X[:, :0], X[:, :0]), ValueError, "student_logits: expected shape .* at least 1"),
    "dim 0": (lambda: KDLoss(dim=0), ValueError, "dim: expected the class dimension, got 0"),
    "dim 3": (
        lambda: KDLoss(dim=3)(X, X),
        ValueError,
        r"dim: expected .* of \[2, 3, 5\], 1 to 2, got 3",
    ),
    "dim -3": (lambda: KDLoss(dim=-3)(X, X), ValueError, "dim: expected the class dimension of .* got -3"),
    "dim of the function": (lambda: functional.kd_loss(X, X, dim="1"), TypeError, "dim: expected an int, got '1'"),
    "dim a half": (lambda: functional.kd_loss(X, X, dim=1.5), TypeError, "dim: expected an int, got 1.5"),
    "dim a bool": (lambda: functional.kd_loss(X, X, dim=True), TypeError, "dim: expected an int, got True"),
    "dim kind": (lambda: KDLoss(dim="last"), TypeError, "dim: expected an int, got 'last'"),
    "temperature": (lambda: functional.kd_loss(X, X, temperature=0), ValueError, "temperature: expected a positive"),
    "NaN": (
        lambda: KDLoss()(X, X.masked_fill(X[1, 2, 3] == X, float("nan"))),
        ValueError,
        r"teacher_logits: position \[1, 2\] has the largest value nan",
    ),
    "NaN that counts": (
        lambda: KDLoss()(X, X.masked_fill(X[1, 2, 3] == X, float("nan")), M),
        ValueError,
        r"teacher_logits: position \[1, 2\]",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_refused_by_name(case):
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        call()
