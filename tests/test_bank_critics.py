"""InfoNCE and the sigmoid loss against a bank, by float64 formulas written out for explicit rows."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize, softplus

import wcord_fast
from tests.test_bank_functions import LABELS, PLANS, SAMPLERS, TAU, B, D, N, problem, sampler
from wcord_fast import MemoryBank, NegativeSampler
from wcord_fast import functional as F
from wcord_fast.ops import dispatch
from wcord_fast.ops.bank.autograd import spec_args
from wcord_fast.ops.bank.critics import infonce_op, sigmoid_op

BACKENDS = [
    "reference",
    pytest.param("native", marks=pytest.mark.skipif(dispatch.cannot_run("native", "cpu") is not None, reason="none")),
]
WHOLE_POOLS = {"all": {"k": "all", "labels": LABELS}, "expected": {"k": 20, "labels": LABELS, "expected": True}}
WEIGHT = torch.arange(1.0, B + 1, dtype=torch.float64)  # a different gradient for each anchor


def scalars():
    return [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (7.0, -4.5)]


def given_rows(seed=5):
    g = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(B, D, generator=g, dtype=torch.float64), dim=1)


def drawn(name, index):
    """(sampler, its rows [B, K], how often each counts)."""
    if name in WHOLE_POOLS:
        negatives = NegativeSampler(N, seed=11, **WHOLE_POOLS[name])
        rows = torch.stack([(LABELS[i] != LABELS).nonzero()[:, 0] for i in index])
        return negatives, rows, 20 / 48 if name == "expected" else 1.0
    negatives = sampler(name)
    return negatives, negatives.draw(index), 1.0


def softmax_formula(x, positive, bank, rows, times, tau=TAU):
    own, others = (x * positive).sum(1) / tau, torch.einsum("bd,bkd->bk", x, bank[rows]) / tau + math.log(times)
    return cross_entropy(torch.cat((own[:, None], others), 1), torch.zeros(B, dtype=torch.int64), reduction="none")


def sigmoid_formula(x, positive, bank, rows, times, scale, bias):
    own, others = (x * positive).sum(1), torch.einsum("bd,bkd->bk", x, bank[rows])
    return softplus(-(scale * own + bias)) + times * softplus(scale * others + bias).sum(1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("own", ["bank", "given"])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", [*SAMPLERS, *WHOLE_POOLS])
def test_losses_and_all_gradients_equal_the_formulas(name, plan, own, backend):
    anchor, bank, index = problem()
    negatives, rows, times = drawn(name, index)
    options = {"negatives": negatives, "plan": plan, "backend": backend}
    for critic in ("infonce", "sigmoid"):
        results = []
        for ours in (True, False):
            x = anchor.clone().requires_grad_()
            positive = given_rows().requires_grad_() if own == "given" else None
            extra = scalars() if critic == "sigmoid" else []
            if ours and critic == "infonce":
                loss = F.bank_infonce(x, bank, index, temperature=TAU, positive=positive, **options)
            elif ours:
                loss = F.bank_sigmoid(x, bank, index, scale=extra[0], bias=extra[1], positive=positive, **options)
            else:
                formula = softmax_formula if critic == "infonce" else sigmoid_formula
                loss = formula(x, bank[index] if positive is None else positive, bank, rows, times, *extra)
            inputs = [x, *([] if positive is None else [positive]), *extra]
            results.append((loss, *torch.autograd.grad((loss * WEIGHT).sum(), inputs)))
        for actual, wanted in zip(*results, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("plan", PLANS)
def test_explicit_rows_equal_the_sampler_that_drew_them(plan, backend):
    anchor, bank, index = problem()
    negatives = sampler("class")
    for function in (F.bank_infonce, F.bank_sigmoid):
        by_sampler = function(anchor, bank, index, negatives=negatives, plan=plan, backend=backend)
        by_rows = function(anchor, bank, index, negatives=negatives.draw(index).int(), plan=plan, backend=backend)
        torch.testing.assert_close(by_rows, by_sampler, rtol=1e-12, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("plan", PLANS)
def test_gradcheck(plan, backend):
    anchor, bank, index = problem()
    options = {"negatives": sampler("class"), "plan": plan, "backend": backend}
    inputs = [anchor.clone().requires_grad_(), given_rows().requires_grad_(), *scalars()]
    assert torch.autograd.gradcheck(lambda x, p: F.bank_infonce(x, bank, index, positive=p, **options), inputs[:2])
    assert torch.autograd.gradcheck(
        lambda x, p, t, b: F.bank_sigmoid(x, bank, index, positive=p, scale=t, bias=b, **options), inputs
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("plan", PLANS)
def test_narrow_dtypes_accumulate_in_fp32(dtype, plan, backend):
    anchor, bank, index = problem()
    bank, positive = bank.to(torch.bfloat16), given_rows().to(dtype)
    for function in (F.bank_infonce, F.bank_sigmoid):
        results = []
        for wide in (False, True):
            x, p = (t.to(dtype, copy=True).to(torch.float64 if wide else dtype) for t in (anchor, positive))
            x, p = x.detach().requires_grad_(), p.detach().requires_grad_()
            rows = bank.double() if wide else bank
            loss = function(x, rows, index, negatives=sampler("class"), positive=p, plan=plan, backend=backend)
            loss.sum().backward()
            results.append((loss, x.grad, p.grad))
        (loss, *grads), (exact, *slopes) = results
        assert loss.dtype == torch.float32 and all(g.dtype == dtype for g in grads)
        torch.testing.assert_close(loss.double(), exact, rtol=2e-6, atol=1e-6)
        for grad, slope in zip(grads, slopes, strict=True):
            torch.testing.assert_close(grad.double(), slope, rtol=4 * torch.finfo(dtype).eps, atol=1e-5)


def test_gradients_are_computed_only_for_inputs_that_require_them():
    anchor, bank, index = problem()
    positive, (scale, bias) = given_rows().requires_grad_(), scalars()
    options = {"negatives": sampler("class"), "positive": positive}
    (in_positive,) = torch.autograd.grad(F.bank_infonce(anchor, bank, index, **options).sum(), positive)
    assert in_positive.abs().sum() > 0
    options["positive"] = positive.detach()
    loss = F.bank_sigmoid(anchor, bank, index, scale=scale, bias=-4.5, **options)
    (in_scale,) = torch.autograd.grad(loss.sum(), scale)
    assert in_scale.shape == () and not bias.grad
    assert not F.bank_sigmoid(anchor, bank, index, **options).requires_grad


def test_scale_may_be_float_or_tensor_and_zero_or_negative():
    anchor, bank, index = problem()
    negatives = sampler("class")
    rows = negatives.draw(index)
    for scale in (0.0, -3.0, 2.0):
        loss = F.bank_sigmoid(anchor, bank, index, negatives=negatives, scale=scale, bias=torch.tensor(-1.0))
        expected = sigmoid_formula(anchor, bank[index], bank, rows, 1.0, scale, -1.0)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("tau", [1e-3, 5.0])
def test_infonce_never_overflows(tau, plan, backend):
    anchor, bank, index = problem(torch.float32)
    negatives = sampler("class")
    x = (3 * anchor).requires_grad_()
    loss = F.bank_infonce(x, bank, index, negatives=negatives, temperature=tau, plan=plan, backend=backend)
    (grad,) = torch.autograd.grad(loss.sum(), x)
    exact = x.detach().double().requires_grad_()
    wanted = softmax_formula(exact, bank[index].double(), bank.double(), negatives.draw(index), 1.0, tau)
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-6, atol=1e-3 * tau**-1 * 1e-3)
    torch.testing.assert_close(grad.double(), torch.autograd.grad(wanted.sum(), exact)[0], rtol=1e-4, atol=1e-3 / tau)


@pytest.mark.parametrize("chunk", [1, 3000])
@pytest.mark.parametrize("plan", PLANS)
def test_chunks_of_the_reference_do_not_change_the_result(monkeypatch, chunk, plan):
    from wcord_fast.ops.bank import reference

    anchor, bank, index = problem()
    x = anchor.clone().requires_grad_()

    def results():
        losses = [
            function(x, bank, index, negatives=sampler("class"), plan=plan, backend="reference")
            for function in (F.bank_infonce, F.bank_sigmoid)
        ]
        return *losses, *(torch.autograd.grad(loss.sum(), x)[0] for loss in losses)

    whole = results()
    monkeypatch.setattr(reference, "CHUNK_BYTES", chunk)
    for a, b in zip(results(), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def test_a_gradient_belongs_to_the_forward_even_if_bank_and_step_move_on():
    anchor, bank, index = problem()
    x, p, negatives = anchor.clone().requires_grad_(), given_rows().requires_grad_(), sampler("class")
    for function in (F.bank_infonce, F.bank_sigmoid):
        before = torch.autograd.grad(function(x, bank, index, negatives=negatives, positive=p).sum(), (x, p))
        loss = function(x, bank, index, negatives=negatives, positive=p).sum()
        F.bank_update_(bank, index, anchor)
        negatives.advance()
        after = torch.autograd.grad(loss, (x, p))
        negatives.step = 0
        assert all(map(torch.equal, before, after))
        bank.copy_(problem()[1])


def test_compiled_calls_anchor_offsets_and_memory_banks_give_equal_losses():
    anchor, _, index = problem(torch.float32)
    bank, negatives = MemoryBank(N, D, seed=1), sampler("class")

    def losses(x, p, scale, offset=0):
        options = {"negatives": negatives, "anchor_offset": offset}
        infonce = F.bank_infonce(x, bank, index[offset:], positive=p, **options)
        return infonce, F.bank_sigmoid(x, bank.rows, index[offset:], scale=scale, **options)

    def leaves():
        return [t.requires_grad_() for t in (anchor.clone(), given_rows().float(), torch.tensor(8.0))]

    results = []
    for call in (losses, torch.compile(losses, fullgraph=True, backend="aot_eager")):
        inputs = leaves()
        actual = call(*inputs)
        results.append((*actual, *torch.autograd.grad(sum(loss.sum() for loss in actual), inputs)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
    for part, whole in zip(
        losses(anchor[3:], given_rows().float()[3:], torch.tensor(8.0), 3), results[0], strict=False
    ):
        torch.testing.assert_close(part, whole[3:])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(map(torch.equal, losses(*leaves()), results[0]))


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("needs_grad", [True, False])
def test_opcheck(needs_grad, given):
    anchor, bank, index = problem(torch.float32)
    anchors = torch.stack((anchor, given_rows().float()))
    banks, spec = [bank, bank.flip(0)], spec_args(sampler("class").spec())
    positive = anchors.flip(0) if given else None
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    args = (anchors, banks, index, positive)
    torch.library.opcheck(infonce_op, (*args, *spec, TAU, needs_grad, "auto", "auto"), test_utils=checks)
    scalars = torch.tensor(5.0), torch.tensor(-5.0)
    torch.library.opcheck(sigmoid_op, (*args, *scalars, *spec, needs_grad, "auto", "auto"), test_utils=checks)


def good():
    anchor, bank, index = problem(torch.float32)
    return {"anchor": anchor, "bank": bank, "index": index, "negatives": sampler("class")}


def with_nan():
    rows = torch.ones(B, D)
    rows[1, 2] = math.nan
    return rows


BAD = [
    ({"positive": with_nan()}, ValueError, r"positive: row 1 holds nan"),
    ({"positive": torch.ones(B, D + 1)}, ValueError, r"positive: expected shape \[7, 12\]"),
    ({"positive": torch.ones(B, D, device="meta")}, ValueError, r"positive is on meta"),
    ({"positive": torch.ones(B, D).long()}, TypeError, r"positive: expected dtype"),
    ({"positive": 1.0}, TypeError, r"positive: expected a torch.Tensor"),
    ({"anchor": with_nan()}, ValueError, r"anchor: row 1 holds nan"),
    ({"index": torch.full((B,), N)}, ValueError, r"index\[0\]"),
    ({"negatives": torch.full((B, 2), N)}, ValueError, r"negatives\[0, 0\]"),
    ({"anchor_offset": -1}, ValueError, r"anchor_offset"),
    ({"plan": "tree"}, ValueError, r"plan"),
    ({"backend": "triton"}, NotImplementedError, r"backend='triton': bank_\w+ with plan="),
]
BAD_INFONCE = [({"temperature": bad}, ValueError, "temperature") for bad in (0.0, -1.0, math.nan, math.inf)]
BAD_SIGMOID = [
    ({name: bad}, error, name)
    for name in ("scale", "bias")
    for bad, error in (
        (math.nan, ValueError),
        (1e39, ValueError),
        ("big", TypeError),
        (torch.ones(1), ValueError),
        (torch.tensor(math.inf), ValueError),
        (torch.ones((), device="meta"), ValueError),
    )
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("function", "change", "error", "message"),
    [(F.bank_infonce, *bad) for bad in BAD + BAD_INFONCE] + [(F.bank_sigmoid, *bad) for bad in BAD + BAD_SIGMOID],
)
def test_bad_arguments_are_named(function, change, error, message, backend):
    with pytest.raises(error, match=message):
        function(**{**good(), "backend": backend, **change})


def test_on_cuda_the_dense_plan_is_triton_s_and_gather_native(monkeypatch):
    monkeypatch.setattr(dispatch, "cannot_run", lambda backend, device: None)
    for op in ("bank_infonce", "bank_sigmoid"):
        for k, expected in ((20, ("dense", "triton")), (1, ("gather", "native"))):
            choice = wcord_fast.explain(op, num_data=N, k=k, device="cuda")
            assert (choice.plan, choice.backend) == expected
        for backend, plan in (("native", "dense"), ("triton", "gather")):
            with pytest.raises(NotImplementedError, match="not in the support table"):
                wcord_fast.explain(op, num_data=N, k=20, plan=plan, device="cuda", backend=backend)
