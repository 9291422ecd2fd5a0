"""Forms that are timed on a GPU: kernels, CRD steps from anchors, steps of modules, transport; ours and others'."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bench import gpu_floors as floors
from bench.bank import CHECKED, SLACK, errors
from bench.bank_providers import EPS, MOMENTUM, TAU, Case, Naive, Ours, Plain, plain_loss, plain_update
from bench.gpu_floors import Work
from bench.host import NaiveCRD
from bench.ot import VALUE_LIMIT
from bench.ot_providers import PROVIDERS, ours
from bench.ot_providers import Case as TransportCase
from wcord_fast import CRDLoss, NegativeSampler, WCoRDLoss, use_backend
from wcord_fast import functional as F
from wcord_fast.ops.bank import directions, membership

LARGEST = 1 << 33  # bytes of [B, K, D] above which forms that materialise it are left out
LIMITS = {"fp32": {"loss": 1e-6, "grad": 1e-5}, "bf16": {"loss": 1e-4, "grad": 1e-2}}  # of ours, relative
MODULE_LIMITS = {"naive": 1e-3, "plain": 1e-4, "fp32": 1e-5, "bf16": 1e-4}
S_DIM, T_DIM = 64, 256
TRANSPORT = [(s, e, n) for n in (64, 256, 1024, 4096) for s, e in (("sinkhorn", 0.05), ("ipot", 0.5))]
OTHERS = ("naive, unrolled", "naive, envelope", "exp once, plain PyTorch", "GeomLoss")
ITERS = 50


@dataclass
class Timed:
    """One timed call and its result row.

    Attributes:
        row: the entries of its row.
        make: makes the call; memory is taken only then.
        check: of the call that was made, {"error": ..., "right": ...}.
        work: at the least.
        eager_only: why it is not put into a graph.
    """

    row: dict[str, Any]
    make: Callable[[], Callable[[], Any]]
    check: Callable[[Any], dict[str, Any]] = lambda call: {}
    work: Work = field(default_factory=dict)
    eager_only: str | None = None


def backend_of(device: torch.device) -> str:
    return "auto" if device.type == "cuda" else "native"


def moved(case: Case, device: torch.device, dtype: torch.dtype) -> Case:
    """The case with its tensors on `device` and its banks rounded to `dtype`."""
    there = copy.copy(case)
    there.anchors, there.index, there.log_z = (t.to(device) for t in (case.anchors, case.index, case.log_z))
    there.banks = [bank.to(device, dtype, copy=True) for bank in case.banks]
    there.sampler = copy.deepcopy(case.sampler).to(device)
    return there


def materialises(batch: int, k: int, dim: int) -> bool:
    return 4 * batch * k * dim <= LARGEST


def _sizes(case: Case) -> dict[str, int]:
    return {"batch": case.batch, "k": case.k, "num_data": case.num_data, "dim": case.dim}


def _bank_work(plan: str, sizes: dict[str, int], dtype: torch.dtype, device: torch.device) -> Work:
    if plan == "dense":
        return floors.dense_work(**sizes, width=dtype.itemsize)
    return floors.gather_work(**sizes, width=dtype.itemsize, l2=floors.l2_bytes(device))


def kernels(case: Case, device: torch.device) -> Iterator[Timed]:
    """Draws, membership, both plans' value and gradient, and the bank's update: each alone."""
    there = moved(case, device, torch.float32)
    half = [bank.bfloat16() for bank in there.banks]

    def timed(name: str, dtype: torch.dtype, work: Work, call: Callable[[], Any]) -> Timed:
        row = {"subject": "kernel", "form": name, "bank": "bf16" if dtype == torch.bfloat16 else "fp32"}
        return Timed({**row, **_sizes(case)}, lambda: call, work=work)

    spec, index = there.sampler.spec(), there.index
    yield timed("draw", torch.float32, floors.draw_work(case.batch, case.k), lambda: there.sampler.draw(index))
    work = floors.membership_work(case.batch, case.num_data)
    draw_mask = membership.draw_mask
    yield timed("membership", torch.float32, work, lambda: draw_mask(index, case.num_data, spec, "native"))
    for dtype, banks in ((torch.float32, there.banks), (torch.bfloat16, half)):
        for plan in ("gather", "dense"):
            args = (there.anchors, banks, index, there.log_z, spec, TAU, plan, backend_of(device), True)
            work = _bank_work(plan, _sizes(case), dtype, device)
            yield timed(plan, dtype, work, lambda args=args: directions.nce_and_gradient(*args))
        work = floors.update_work(case.batch, case.dim, dtype.itemsize)
        call = lambda bank=banks[0]: F.bank_update_(bank, index, there.anchors[0])  # noqa: E731
        yield timed("update", dtype, work, call)


def steps(case: Case, device: torch.device) -> Iterator[Timed]:
    """A CRD step from anchors: both directions, loss, gradients, updates; every form against float64."""
    count = min(CHECKED, case.batch)
    expected: dict[str, Any] = {}

    def wanted(precision: str) -> Any:
        if precision not in expected:
            rounded = case if precision == "fp32" else moved(case, torch.device("cpu"), torch.bfloat16)
            expected[precision] = [t.to(device) for t in rounded.answers(count)]
        return expected[precision]

    def timed(name: str, precision: str, form: Callable[[], Any], work: Work, checked: bool = True) -> Timed:
        def check(step) -> dict[str, Any]:
            if not checked:
                return {}
            error, slack = errors(step.__self__, wanted(precision)), SLACK.get(name, 1)
            return {"error": error, "right": all(error[key] <= slack * LIMITS[precision][key] for key in error)}

        row = {"subject": "step", "form": name, "bank": precision, **_sizes(case)}
        return Timed(row, lambda: form().step, check, work)

    def full() -> Case:
        return moved(case, device, torch.float32)

    def half() -> Case:
        return moved(case, device, torch.bfloat16)

    if materialises(case.batch, case.k, case.dim):
        yield timed("naive", "fp32", lambda: Naive(full()), {})
        yield timed("plain", "fp32", lambda: Plain(full()), {})
    backend = backend_of(device)
    for plan in ("gather", "dense"):
        for precision, made, dtype in (("fp32", full, torch.float32), ("bf16", half, torch.bfloat16)):
            form = lambda made=made, plan=plan: Ours(made(), plan, backend, copy=False)  # noqa: E731
            yield timed(plan, precision, form, _bank_work(plan, _sizes(case), dtype, device))

    def every_row() -> Ours:
        there = half()
        labels = torch.arange(case.num_data) % 100
        there.sampler = NegativeSampler(case.num_data, "all", labels=labels, seed=1).to(device)
        return Ours(there, "dense", backend, copy=False)

    work = floors.dense_work(case.batch, 0, case.num_data, case.dim, 2)
    yield timed("dense, all rows", "bf16", every_row, work, checked=False)


class PlainCRD(NaiveCRD):
    """CRD in plain PyTorch, in its fastest known form: one product per direction; negatives are given."""

    def forward(self, f_s: Tensor, f_t: Tensor, idx: Tensor, rows: Tensor) -> Tensor:
        v1, v2 = (nn.functional.normalize(linear(f)) for linear, f in ((self.embed_s, f_s), (self.embed_t, f_t)))
        k, n = rows.shape[1] - 1, self.num_data
        args = (rows[:, 0], rows[:, 1:], math.log(k / n + EPS) + math.log(n), k * math.log1p(EPS * n / k))
        self.written = ((self.memory_v1, idx, v1.detach()), (self.memory_v2, idx, v2.detach()))
        return plain_loss(v1, self.memory_v2, *args).mean() + plain_loss(v2, self.memory_v1, *args).mean()

    @torch.no_grad()
    def after_backward(self) -> None:
        """Both updates: the product's backward needs the banks as they were."""
        for bank, idx, rows in self.written:
            plain_update(bank, idx, rows)


class ModuleStep:
    """Forward and backward of a loss module in training, from features to the gradients of features and weights."""

    def __init__(self, loss: nn.Module, *arguments: Tensor):
        self.loss, self.arguments = loss, arguments

    def step(self) -> Tensor:
        self.loss.zero_grad(set_to_none=True)
        self.arguments[0].grad = None
        value = self.loss(*self.arguments)
        value.backward()
        if isinstance(self.loss, PlainCRD):
            self.loss.after_backward()
        return value.detach()

    @torch.no_grad()
    def value(self, backend: str | None = None) -> float:
        """The loss of a copy, so that its state stays; by the reference on request."""
        loss = copy.deepcopy(self.loss)
        if backend is None:
            return float(loss(*self.arguments))
        with use_backend(backend):
            return float(loss(*self.arguments))


def modules(batch: int, k: int, num_data: int, dim: int, device: torch.device) -> Iterator[Timed]:
    """Steps of CRDLoss and WCoRDLoss by both plans, and of CRD as naive and as plain PyTorch."""
    g = torch.Generator().manual_seed(0)
    f_s, f_t = (torch.randn(batch, d, generator=g).to(device) for d in (S_DIM, T_DIM))
    idx = torch.randperm(num_data, generator=g)[:batch].to(device)
    labels, sizes = torch.arange(num_data) % 100, {"batch": batch, "k": k, "num_data": num_data, "dim": dim}

    def timed(form: str, bank: str, case: str, made: Callable[[], nn.Module], more: Callable[[], tuple], **kw: Any):
        def make() -> Callable[[], Tensor]:
            torch.manual_seed(0)
            step = ModuleStep(made().to(device), f_s.detach().clone().requires_grad_(), f_t, idx, *more())
            step.step()  # sets log Z
            return step.step

        def check(call) -> dict[str, Any]:
            if not materialises(batch, k, dim):
                return {"unchecked": "the reference does not fit into memory"}
            step: ModuleStep = call.__self__
            wanted = _exact_crd(step) if isinstance(step.loss, NaiveCRD) else step.value("reference")
            error = abs(step.value() - wanted) / abs(wanted)
            limit = MODULE_LIMITS.get(form, MODULE_LIMITS[bank])
            return {"error": {"loss": error}, "right": error <= limit}

        return Timed({"subject": "module", "case": case, "form": form, "bank": bank, **sizes}, make, check, **kw)

    if materialises(batch, k, dim):

        def given() -> tuple[Tensor]:
            drawn = torch.randint(0, num_data, (batch, k), generator=torch.Generator().manual_seed(1))
            return (torch.cat((idx[:, None], drawn.to(device)), 1),)

        why = "it reads its constants with item()"
        yield timed("naive", "fp32", "CRD", lambda: NaiveCRD(num_data, dim, S_DIM, T_DIM), given, eager_only=why)
        yield timed("plain", "fp32", "CRD", lambda: PlainCRD(num_data, dim, S_DIM, T_DIM), given)
    for name in ("CRDLoss", "WCoRDLoss"):
        for plan in ("gather", "dense"):
            for bank, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
                options = {"labels": labels, "seed": 1, "plan": plan, "feat_dim": dim, "bank_dtype": dtype}

                def made(name=name, options=options) -> nn.Module:
                    if name == "CRDLoss":
                        return CRDLoss(S_DIM, T_DIM, num_data, nce_k=k, nce_m=MOMENTUM, **options)
                    return WCoRDLoss(S_DIM, T_DIM, num_data, num_negatives=k, momentum=MOMENTUM, **options)

                yield timed(plan, bank, name, made, tuple, work=_bank_work(plan, sizes, dtype, device))


@torch.no_grad()
def _exact_crd(step: ModuleStep) -> float:
    """The reference's CRD loss, in float64, of naive's embeddings and banks."""
    loss, (f_s, f_t, _, rows) = step.loss, step.arguments
    total = 0.0
    for linear, f, bank in ((loss.embed_s, f_s, loss.memory_v2), (loss.embed_t, f_t, loss.memory_v1)):
        x = nn.functional.normalize(linear(f).double(), dim=1)
        options = {"log_z": math.log(loss.num_data), "temperature": TAU, "backend": "reference"}
        total += float(F.bank_nce(x, bank.double(), rows[:, 0], negatives=rows[:, 1:], **options).mean())
    return total


def transport(solver: str, eps: float, n: int, dim: int, device: torch.device) -> Iterator[Timed]:
    """Value and both gradients of a transport problem, cosine cost: our form and other forms."""
    case = TransportCase(n, dim, solver, eps, ITERS)
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, dim, generator=g).to(device) for _ in range(2))
    backend = backend_of(device)
    for name, provider in {"ours": ours(backend), **{name: PROVIDERS[name] for name in OTHERS}}.items():
        calls = provider(case, x, y)
        if calls is None:
            continue

        def check(call, name=name, value=calls.value) -> dict[str, Any]:
            options = {"solver": solver, "eps": eps, "iters": ITERS, "backend": backend, "value": value}
            exact = float(F.ot_cost(x.double(), y.double(), **options))
            error = abs(float(call()[0]) - exact) / abs(exact)
            return {"error": {"value": error}} | ({"right": error <= VALUE_LIMIT} if name == "ours" else {})

        row = {"subject": "transport", "form": name, "solver": solver, "eps": eps, "n": n, "dim": dim}
        work = floors.transport_work(n, dim, ITERS) if name == "ours" else {}
        yield Timed(row, lambda calls=calls: calls.gradient, check, work)
