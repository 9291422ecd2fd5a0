"""WCoRDLoss with InfoNCE and the sigmoid, and negatives of the batch, of queues or of the bank, against float64."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.nn.functional import normalize, softplus

from wcord_fast import FeatureQueue, WCoRDLoss

S_DIM, T_DIM, D, N, B, TAU = 6, 5, 4, 30, 5, 0.2
LABELS = torch.arange(N) % 3
LABELS[::7] = -1
CRITICS = ("infonce", "sigmoid")


def build(critic, negatives, n_data=N, **options):
    torch.manual_seed(3)
    options = {"lambda_lckt": 0.0, "lambda_gckt": 1.0, "temperature": TAU, "feat_dim": D, "seed": 1, **options}
    return WCoRDLoss(S_DIM, T_DIM, n_data, critic=critic, negatives=negatives, **options)


def batch(step, size=B):
    g = torch.Generator().manual_seed(step)
    f_s, f_t = torch.randn(size, S_DIM, generator=g), torch.randn(size, T_DIM, generator=g)
    return f_s, f_t, torch.randint(N, (size,), generator=g)


def embedded(loss, f_s, f_t):
    """Both embeddings in float64, with gradient to weights and biases of `loss`."""
    both = ((loss.embed_s, f_s), (loss.embed_t, f_t))
    return [normalize(f.double() @ e.linear.weight.double().T + e.linear.bias.double(), dim=1) for e, f in both]


def group_of(idx, exclude):
    """The group of each row, whose rows are no negatives of each other; None without groups."""
    if exclude == "class":
        return [int(LABELS[i]) if LABELS[i] >= 0 else ("unknown", int(i)) for i in idx]
    return [int(i) for i in idx] if exclude == "self" else [None] * len(idx)


def direction(critic, anchor, positive, rows, scale, bias):
    """The loss of one anchor."""
    own, others = scale * anchor @ positive + bias, [scale * anchor @ row + bias for row in rows]
    if critic == "infonce":
        return torch.stack([own, *others]).logsumexp(0) - own
    return softplus(-own) + sum(softplus(u) for u in others)


def oracle(loss, e_s, e_t, groups, queued=None):
    """The mean loss of both directions; `queued`: lists of (row of s, row of t, group), or None for the batch's own."""
    scale, bias = (10.0, -10.0) if loss.critic == "sigmoid" else (1 / TAU, 0.0)
    total = 0
    for i, group in enumerate(groups):
        if queued is None:
            kept = [j for j, g in enumerate(groups) if j != i and (g is None or g != group)]
            rows_s, rows_t = [e_s[j] for j in kept], [e_t[j] for j in kept]
        else:
            kept = [(s, t) for s, t, g in queued if g is None or g != group]
            rows_s, rows_t = [s for s, _ in kept], [t for _, t in kept]
        total += direction(loss.critic, e_s[i], e_t[i], rows_t, scale, bias)
        total += direction(loss.critic, e_t[i], e_s[i], rows_s, scale, bias)
    return total / len(groups)


def gradients(value, loss):
    weights = [p for embed in (loss.embed_s, loss.embed_t) for p in embed.parameters()]
    return torch.autograd.grad(value, weights)


@pytest.mark.parametrize("exclude", ["class", "self", "none"])
@pytest.mark.parametrize("critic", CRITICS)
def test_batch_equals_float64(critic, exclude):
    loss = build(critic, "batch", labels=LABELS, exclude=exclude)
    f_s, f_t, idx = batch(0, 12)
    value, expected = loss(f_s, f_t, idx), oracle(loss, *embedded(loss, f_s, f_t), group_of(idx, exclude))
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    for a, b in zip(gradients(value, loss), gradients(expected, loss), strict=True):
        torch.testing.assert_close(a, b.float(), rtol=1e-4, atol=1e-5)
    assert float(loss.terms["gckt"]) == -float(value.detach())


@pytest.mark.parametrize("exclude", ["class", "self", "none"])
@pytest.mark.parametrize("critic", CRITICS)
def test_a_queue_is_scored_and_then_pushed(critic, exclude):
    """Empty, half filled, full and written over: after each batch the gradient is taken, when its rows are in."""
    loss = build(critic, "queue", labels=LABELS, exclude=exclude, queue_size=12)
    queued = []
    for step in range(5):
        f_s, f_t, idx = batch(step)
        e_s, e_t = embedded(loss, f_s, f_t)
        groups = group_of(idx, exclude)
        expected, value = oracle(loss, e_s, e_t, groups, queued), loss(f_s, f_t, idx)
        torch.testing.assert_close(value.double(), expected.double(), rtol=1e-5, atol=1e-6)
        if queued:
            for a, b in zip(gradients(value, loss), gradients(expected, loss), strict=True):
                torch.testing.assert_close(a, b.float(), rtol=1e-4, atol=1e-5)
        queued = [*queued, *zip(e_s.detach(), e_t.detach(), groups, strict=True)][-12:]
        assert int(loss.paired.queue_s.filled) == int(loss.paired.queue_t.filled) == len(queued)


def test_the_first_batch_of_a_queue_has_no_negatives():
    f_s, f_t, _ = batch(0)
    loss = build("infonce", "queue", None)
    assert float(loss(f_s, f_t)) == 0
    loss = build("sigmoid", "queue", None)
    e_s, e_t = embedded(loss, f_s, f_t)
    expected = 2 * softplus(-(10 * (e_s * e_t).sum(1) - 10)).mean()
    torch.testing.assert_close(loss(f_s, f_t).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("negatives", ["batch", "queue"])
def test_idx_is_not_needed(critic, negatives):
    streamed, numbered = build(critic, negatives, None), build(critic, negatives, N)
    streamed.load_state_dict(numbered.state_dict())
    for step in range(3):
        f_s, f_t, _ = batch(step)
        distinct = torch.arange(B) + B * step
        assert torch.equal(streamed(f_s, f_t), numbered(f_s, f_t, distinct))
        assert torch.isfinite(streamed(f_s, f_t, distinct + 10**12)) and torch.isfinite(numbered(f_s, f_t))


def test_dual_needs_no_idx():
    f_s, f_t, _ = batch(0)
    streamed, numbered = build("dual", "batch", None), build("dual", "batch", N)
    assert torch.equal(streamed(f_s, f_t), numbered(f_s, f_t, torch.arange(B)))


def test_eval_mode_pushes_nothing():
    loss = build("infonce", "queue", None)
    loss(*batch(0)[:2])
    before = copy.deepcopy(loss.state_dict())
    loss.eval()
    assert float(loss(*batch(1)[:2]).detach()) > 0
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())


@pytest.mark.parametrize("critic", CRITICS)
def test_scale_and_bias_are_trained(critic):
    loss = build(critic, "queue", None)
    trained = {name for name, p in loss.named_parameters() if not name.startswith("embed")}
    assert trained == ({"score_map.log_scale", "score_map.bias"} if critic == "sigmoid" else set())
    if critic == "sigmoid":
        scale, bias = loss.score_map()
        assert scale.item() == pytest.approx(10) and bias.item() == -10
        for negatives in ("queue", "batch"):
            loss = build(critic, negatives, None)
            for step in range(2):
                e_s, e_t = embedded(loss, *batch(step)[:2])
                value = loss(*batch(step)[:2])
            queued = None if negatives == "batch" else [*zip(*embedded(loss, *batch(0)[:2]), [None] * B, strict=True)]
            log_scale, bias = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (math.log(10), -10.0))
            total = 0
            for i in range(B):
                for own, other, column in ((e_s, e_t, 1), (e_t, e_s, 0)):
                    rows = [other[j] for j in range(B) if j != i] if queued is None else [q[column] for q in queued]
                    total += direction(critic, own[i], other[i], rows, log_scale.exp(), bias) / B
            actual = torch.autograd.grad(value, list(loss.score_map.parameters()))
            wanted = torch.autograd.grad(total, (log_scale, bias))
            for a, b in zip(actual, wanted, strict=True):
                torch.testing.assert_close(a.double(), b[None], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("negatives", ["batch", "queue"])
def test_the_teacher_is_trained_on_request(negatives):
    for detach in (True, False):
        loss = build("infonce", negatives, None, detach_teacher=detach)
        loss(*batch(0)[:2])
        f_s, f_t = (f.requires_grad_() for f in batch(1)[:2])
        loss(f_s, f_t).backward()
        assert f_s.grad.abs().sum() > 0 and (f_t.grad is None) == detach


@pytest.mark.parametrize("critic", CRITICS)
def test_resume_is_exact(critic):
    loss, fresh = (build(critic, "queue", labels=LABELS, queue_size=12) for _ in range(2))
    for step in range(3):
        loss(*batch(step))
    fresh.load_state_dict(copy.deepcopy(loss.state_dict()))
    for step in range(3, 6):
        assert torch.equal(loss(*batch(step)), fresh(*batch(step)))
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in loss.state_dict().items())


def test_a_queue_of_another_size_is_refused_or_left_empty():
    loss, other = build("infonce", "queue", None, queue_size=12), build("infonce", "queue", None, queue_size=11)
    other(*batch(0)[:2])
    with pytest.raises(RuntimeError, match=r"size mismatch for paired\.queue_s\.rows"):
        loss.load_state_dict(other.state_dict())
    with pytest.warns(UserWarning, match="size mismatch"):
        loss.load_state_dict(other.state_dict(), strict=False)
    assert int(loss.paired.queue_s.filled) == 0
    assert torch.equal(loss.embed_s.linear.weight, other.embed_s.linear.weight)


def test_a_queue_has_as_many_rows_as_there_are_negatives_by_default():
    assert build("infonce", "queue", num_negatives=9).paired.queue_s.size == 9
    queue = build("infonce", "queue", num_negatives=9, queue_size=8, bank_dtype=torch.bfloat16).paired.queue_t
    assert queue.size == 8 and queue.rows.dtype == torch.bfloat16 and isinstance(queue, FeatureQueue)


def test_reset_restores_the_initial_state():
    loss = build("sigmoid", "queue", None)
    loss(*batch(0)[:2])
    with torch.no_grad():
        loss.score_map.bias.fill_(3)
    loss.reset_parameters()
    assert int(loss.paired.queue_s.pushed) == 0 and loss.score_map.bias.item() == -10


def test_local_term_needs_no_idx_for_its_pairs():
    options = {"lambda_lckt": 1.0, "lckt_pairs": "prior"}
    f_s, f_t, _ = batch(0)
    streamed, numbered = build("infonce", "batch", None, **options), build("infonce", "batch", N, **options)
    assert torch.equal(streamed(f_s, f_t), numbered(f_s, f_t, torch.arange(B)))
    assert torch.equal(streamed.lckt_on_pairs(f_s, f_t), numbered.lckt_on_pairs(f_s, f_t, torch.arange(B)))


@pytest.mark.parametrize("exclude", ["class", "self"])
@pytest.mark.parametrize("critic", CRITICS)
def test_bank_equals_float64(critic, exclude):
    loss = build(critic, "bank", labels=LABELS, exclude=exclude, num_negatives="all", backend="reference")
    for step in range(2):
        f_s, f_t, _ = batch(step)
        idx = torch.arange(B) * 3 + step
        e_s, e_t = embedded(loss, f_s, f_t)
        banks = [getattr(loss.contrast, name).rows.double() for name in ("memory_v1", "memory_v2")]
        queued = [*zip(*banks, group_of(range(N), exclude), strict=True)]
        expected, value = oracle(loss, e_s, e_t, group_of(idx, exclude), queued), loss(f_s, f_t, idx)
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
        for a, b in zip(gradients(value, loss), gradients(expected, loss), strict=True):
            torch.testing.assert_close(a, b.float(), rtol=1e-4, atol=1e-5)
        moved = normalize(0.5 * banks[0][idx] + 0.5 * e_s.detach(), dim=1)
        torch.testing.assert_close(loss.contrast.memory_v1.rows[idx].double(), moved, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "message", "args", "options"),
    [
        (ValueError, "n_data: negatives='bank' needs", ("infonce", "bank", None), {}),
        (ValueError, "n_data: negatives='bank' needs", ("nce", None, None), {}),
        (ValueError, "n_data: labels", ("infonce", "batch", None), {"labels": LABELS}),
        (ValueError, "'queue' needs critic='infonce' or 'sigmoid', got critic='nce'", ("nce", "queue"), {}),
        (ValueError, "'batch' needs critic='dual' or", ("nce_sn", "batch"), {}),
        (ValueError, "'bank_negatives' needs critic='dual'", ("infonce", "bank_negatives"), {}),
        (ValueError, "queue_size: needs negatives='queue'", ("infonce", "batch"), {"queue_size": 4}),
        (ValueError, "queue_size: expected an int of at least 1", ("infonce", "queue"), {"queue_size": 0}),
        (TypeError, "queue_size: expected an int", ("infonce", "queue"), {"queue_size": "4"}),
        (ValueError, "queue_size: expected a number with", ("infonce", "queue"), {"num_negatives": "all"}),
        (TypeError, "detach_teacher: expected True or False", ("infonce", "queue"), {"detach_teacher": None}),
    ],
)
def test_wrong_options_are_named(kind, message, args, options):
    with pytest.raises(kind, match=message):
        build(*args, **options)


def test_wrong_calls_are_named():
    f_s, f_t, idx = batch(0)
    loss = build("infonce", "queue", labels=LABELS)
    with pytest.raises(TypeError, match=r"idx: expected a torch\.Tensor, got NoneType"):
        loss(f_s, f_t)
    with pytest.raises(ValueError, match="contrast_idx: negatives='queue' takes no bank rows"):
        loss(f_s, f_t, idx, torch.zeros(B, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"idx\[2\]: expected a row in \[0, 30\), got 30"):
        loss(f_s, f_t, torch.tensor([0, 1, 30, 2, 3]))
    with pytest.raises(ValueError, match=r"idx: expected shape \[5\]"):
        build("infonce", "queue", None)(f_s, f_t, idx[:3])
    with pytest.raises(ValueError, match="init_banks: this loss scores no bank"):
        loss.init_banks(f_s, f_t, idx)
    assert int(loss.paired.queue_s.pushed) == 0
