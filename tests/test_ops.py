"""The bank ops as registered ops: opcheck, FakeTensor, torch.compile(fullgraph=True), autocast, backend choice."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import wcord_fast
from tests.grid import slow
from wcord_fast import CRDLoss, NegativeSampler, WCoRDLoss, use_backend
from wcord_fast import functional as F
from wcord_fast.ops import dispatch
from wcord_fast.ops.bank.autograd import spec_args
from wcord_fast.ops.bank.op import log_z_op, mean_score_op, nce_op, update_op
from wcord_fast.ops.sampling.draws import draw_op

N, K, D, B = 40, 9, 6, 5
LABELS = torch.arange(N) % 4


def case():
    g = torch.Generator().manual_seed(0)
    anchors = torch.nn.functional.normalize(torch.randn(2, B, D, generator=g), dim=-1)
    banks = [torch.randn(N, D, generator=g) for _ in range(2)]
    index = torch.randint(0, N, (B,), generator=g)
    spec = NegativeSampler(N, K, labels=LABELS, seed=1).spec()
    return anchors, banks, index, spec_args(spec)


CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize("needs_grad", [True, False])
def test_opcheck(needs_grad):
    anchors, banks, index, spec = case()
    log_z = torch.tensor([3.0, 4.0])
    torch.library.opcheck(
        nce_op, (anchors, banks, index, log_z, *spec, 0.07, needs_grad, "auto", "auto"), test_utils=CHECKS
    )
    torch.library.opcheck(mean_score_op, (anchors, banks, index, *spec, needs_grad, "dense", "auto"), test_utils=CHECKS)
    unset = torch.full((2,), torch.nan)
    torch.library.opcheck(log_z_op, (unset, anchors, banks, index, *spec, 0.07, "auto", "auto"), test_utils=CHECKS)
    torch.library.opcheck(log_z_op, (log_z, anchors, banks, index, *spec, 0.07, "auto", "auto"), test_utils=CHECKS)
    torch.library.opcheck(update_op, (banks[0], index, anchors[0], 0.5, "auto"), test_utils=CHECKS)
    tables, source, k, replacement, _, offset = spec
    torch.library.opcheck(draw_op, (index, N, tables, source, k, replacement, offset, "auto"), test_utils=CHECKS)


def test_fake_tensors_have_the_real_shapes_and_dtypes():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        anchors, banks, index, spec = case()
        args = (anchors.to(dtype), banks, index, torch.zeros(2), *spec, 0.07, True, "auto", "auto")
        real = nce_op(*args)
        with FakeTensorMode(allow_non_fake_inputs=True):
            fake = nce_op(*args)
        assert [(t.shape, t.dtype) for t in real] == [(t.shape, t.dtype) for t in fake]


@pytest.mark.parametrize("make", [
    lambda: CRDLoss(7, 9, N, feat_dim=D, nce_k=K, labels=LABELS, seed=3),
    slow(lambda: CRDLoss(7, 9, N, feat_dim=D, nce_k=K, labels=LABELS, seed=3, z="ema")),
    slow(lambda: WCoRDLoss(7, 9, N, feat_dim=D, num_negatives=K, labels=LABELS, seed=3, critic="nce")),
    lambda: WCoRDLoss(7, 9, N, feat_dim=D, num_negatives=K, labels=LABELS, seed=3, critic="dual"),
    lambda: WCoRDLoss(7, 9, N, feat_dim=D, num_negatives="all", labels=LABELS, seed=3, critic="dual", negatives="bank"),
    slow(lambda: WCoRDLoss(7, 9, N, feat_dim=D, num_negatives=K, labels=LABELS, seed=3)),
    lambda: WCoRDLoss(7, 9, N, feat_dim=D, queue_size=K, labels=LABELS, critic="infonce", negatives="queue"),
    slow(lambda: WCoRDLoss(7, 9, N, feat_dim=D, queue_size=K, critic="sigmoid", negatives="queue")),
    lambda: WCoRDLoss(7, 9, N, feat_dim=D, labels=LABELS, critic="sigmoid", negatives="batch"),
    lambda: WCoRDLoss(7, 9, N, feat_dim=D, num_negatives=K, labels=LABELS, critic="infonce", backend="reference"),
])  # fmt: skip
def test_modules_compile_without_graph_breaks(make):
    torch._dynamo.reset()  # one forward may be compiled so many times only
    torch.manual_seed(0)
    eager = make()
    torch.manual_seed(0)
    twin = make()
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for step in range(3):
        g = torch.Generator().manual_seed(step)
        f_s, f_t = torch.randn(B, 7, generator=g), torch.randn(B, 9, generator=g)
        idx = torch.randperm(N, generator=g)[:B]
        a, b = f_s.clone().requires_grad_(), f_s.clone().requires_grad_()
        x, y = eager(a, f_t, idx), compiled(b, f_t, idx)
        x.backward()
        y.backward()
        torch.testing.assert_close(x, y)
        torch.testing.assert_close(a.grad, b.grad)
    for (name, p), q in zip(eager.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(p, q, equal_nan=True, msg=name)


def test_functions_compile():
    anchors, banks, index, _ = case()
    s = NegativeSampler(N, K, labels=LABELS, seed=1)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def f(x, bank, index):
        loss = F.bank_nce(x, bank, index, negatives=s, log_z=3.0).sum()
        loss = loss + F.bank_nce(x, bank, index, negatives=s.draw(index), log_z=3.0, plan="dense").sum()
        return loss + F.bank_mean_score(x, bank, index, negatives=s).sum()

    a, b = anchors[0].clone().requires_grad_(), anchors[0].clone().requires_grad_()
    f(a, banks[0], index).backward()
    loss = 2 * F.bank_nce(b, banks[0], index, negatives=s, log_z=3.0).sum()
    (loss + F.bank_mean_score(b, banks[0], index, negatives=s).sum()).backward()
    torch.testing.assert_close(a.grad, b.grad)


def test_autocast_does_not_round_inside_the_ops():
    anchors, banks, index, _ = case()
    s = NegativeSampler(N, K, labels=LABELS, seed=1)
    for plan in ("gather", "dense"):
        plain = F.bank_nce(anchors[0], banks[0], index, negatives=s, log_z=3.0, plan=plan)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(F.bank_nce(anchors[0], banks[0], index, negatives=s, log_z=3.0, plan=plan), plain)


def test_double_backward_is_refused():
    anchors, banks, index, _ = case()
    x = anchors[0].clone().requires_grad_()
    s = NegativeSampler(N, K, seed=1)
    loss = F.bank_nce(x, banks[0], index, negatives=s, log_z=3.0).square().sum()
    (g,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        g.sum().backward()


def test_a_gradient_penalty_is_refused_and_never_lost():
    """once_differentiable alone would let this pass and drop the penalty: grad_output does not require grad."""
    anchors, banks, index, _ = case()
    x = anchors[0].clone().requires_grad_()
    (g,) = torch.autograd.grad(
        F.bank_mean_score(x, banks[0], index, negatives=NegativeSampler(N, K, seed=1)).sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        (x.sum() + g.square().sum()).backward()


def test_backend_order_argument_context_environment(monkeypatch):
    assert dispatch.requested() == "auto"
    monkeypatch.setenv("WCORD_FAST_BACKEND", "reference")
    assert dispatch.requested() == "reference"
    with use_backend("native"):
        assert dispatch.requested() == "native"
        with use_backend("auto"):
            assert dispatch.requested() == "auto"
        assert dispatch.requested("triton") == "triton"
    monkeypatch.setenv("WCORD_FAST_BACKEND", "fastest")
    with pytest.raises(ValueError, match=r"WCORD_FAST_BACKEND.*'fastest'"):
        dispatch.requested()


def test_an_explicit_choice_never_falls_back():
    anchors, banks, index, _ = case()
    s = NegativeSampler(N, K, seed=1)
    with pytest.raises(NotImplementedError, match=r"backend='triton': bank_nce with plan='gather'.*reference on any"):
        F.bank_nce(anchors[0], banks[0], index, negatives=s, log_z=3.0, plan="gather", backend="triton")
    with pytest.raises(ValueError, match=r"backend.*did you mean 'reference'"):
        F.bank_nce(anchors[0], banks[0], index, negatives=s, log_z=3.0, backend="referense")
    monkey = dispatch.cannot_run
    try:
        dispatch.cannot_run = lambda backend, device: "it was taken away" if backend == "native" else None
        with pytest.raises(RuntimeError, match="draw on cpu cannot run here: it was taken away"):
            s.draw(index, backend="native")
        assert "not native: it was taken away" in wcord_fast.explain("draw").reason
        s.draw(index)
    finally:
        dispatch.cannot_run = monkey


def test_explain_and_info():
    choice = wcord_fast.explain("bank_nce", num_data=50000, k=16384, backend="reference")
    assert (choice.plan, choice.backend) == ("dense", "reference") and "N/K = 3.05" in str(choice)
    for backend in ("auto", "reference"):
        assert wcord_fast.explain("bank_nce", num_data=50000, k=100, backend=backend).plan == "gather"
        assert wcord_fast.explain("bank_nce", num_data=50000, k="all", batch=256, backend=backend).plan == "dense"
    if dispatch.cannot_run("native", "cpu") is None:
        assert wcord_fast.explain("bank_nce", num_data=50000, k=16384).backend == "native"
        assert wcord_fast.explain("ot_cost", n=64).plan == "resident"
        assert wcord_fast.explain("ot_cost", n=40000, m=50000).plan == "streaming"
    assert wcord_fast.explain("ot", backend="reference").backend == "reference"
    with pytest.raises(ValueError, match="op: expected one of"):
        wcord_fast.explain("bank_nse")
    for device in (None, "nowhere"):
        with pytest.raises(ValueError, match=f"device: expected 'cpu', .*, got {device!r}"):
            wcord_fast.explain("ot", device=device)
    with pytest.raises(ValueError, match="needs num_data and k"):
        wcord_fast.explain("bank_nce")
    text = wcord_fast.info()
    for row in dispatch.SUPPORT:
        assert row.op in text
    assert torch.__version__ in text


@pytest.mark.parametrize("row", dispatch.SUPPORT, ids=lambda r: f"{r.op}-{r.plan}-{r.device}-{r.backend}")
def test_every_row_of_the_support_table_that_can_run_here_runs(row):
    device = "cpu" if row.device == "any" else row.device
    why = dispatch.cannot_run(row.backend, device)
    if why:
        pytest.skip(why)
    anchors, banks, index, _ = case()
    anchor, bank, index = anchors[0].to(device), banks[0].to(device), index.to(device)
    s = NegativeSampler(N, K, labels=LABELS, seed=1).to(device)
    options = {"plan": row.plan, "backend": row.backend}
    if row.op == "bank_nce":
        result = F.bank_nce(anchor, bank, index, negatives=s, log_z=3.0, **options)
    elif row.op in dispatch.BANK_SCORES:
        result = getattr(F, row.op)(anchor, bank, index, negatives=s, **options)
    elif row.op == "draw":
        result = s.draw(index, backend=row.backend)
    elif row.op == "ot":
        result = F.ot_cost(anchor, bank, backend=row.backend)
    elif row.op == "ot_matrix":
        result = F.ot_cost_from_matrix(torch.cdist(anchor, bank), backend=row.backend)
    elif row.op == "batch":
        result = torch.stack([f(anchor, bank[:B], backend=row.backend) for f in (F.batch_infonce, F.batch_sigmoid)])
    elif row.op == "ot_project":
        result = F.sinkhorn_project(torch.cdist(anchor, anchor), backend=row.backend)
    elif row.op == "bank_update":
        with use_backend(row.backend):
            result = F.bank_update_(bank, index, anchor)
    else:
        assert row.op == "bank_init"
        from wcord_fast.ops.bank.init import bank_init_

        result = torch.full_like(bank, torch.nan)
        bank_init_(result, 1, 0, backend=row.backend)
    assert torch.isfinite(result).all()
