"""Host time of a step: the time of Python and PyTorch around the kernels, at sizes where arithmetic costs nothing.

    python -m bench host [--shapes 4,4,50 8,256,2000 ...] [--quick]

A step is forward and backward of a loss module, or of `ot_cost`, from features to gradients. It is timed by processor
time, with one thread, naive and ours in turns. Naive is CRD in plain PyTorch, as RepDistiller computes it; `WCoRDLoss`
too is compared with it. For `ot_cost`, naive is the unrolled log-domain loop. Ours draws its negatives; naive is given
them. The gate compares the loss with the reference backend's for an equal state.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from bench.bank_providers import MOMENTUM, TAU, index_copy_update
from bench.contest import Contest, run
from bench.options import add_shapes, keep, parsed, parser
from wcord_fast import CRDLoss, WCoRDLoss, use_backend
from wcord_fast import functional as F

SHAPES = ((4, 4, 50), (8, 256, 2000), (64, 4096, 50_000))
QUICK = (4, 4, 50)
S_DIM, T_DIM = 16, 24
OT_SIZES = (4, 64)
CALLS = 20  # in one timed step where a step is short
LIMIT = {"naive": 1e-3, "ours": 1e-5}  # fp32 logarithms of numbers near 1 lose up to 5e-4 of naive's


class NaiveCRD(nn.Module):
    """CRD in plain PyTorch, as RepDistiller computes it: rows [B, K + 1] are given, its constants live in a buffer."""

    def __init__(self, num_data: int, dim: int, s_dim: int = S_DIM, t_dim: int = T_DIM):
        super().__init__()
        self.num_data, self.dim = num_data, dim
        self.embed_s, self.embed_t = nn.Linear(s_dim, dim), nn.Linear(t_dim, dim)
        s = 1 / math.sqrt(dim / 3)
        for name in ("memory_v1", "memory_v2"):
            self.register_buffer(name, torch.rand(num_data, dim).mul_(2 * s).sub_(s))
        self.register_buffer("params", torch.tensor([TAU, num_data, num_data, MOMENTUM]))  # tau, Z_1, Z_2, momentum

    def forward(self, f_s: Tensor, f_t: Tensor, idx: Tensor, rows: Tensor) -> Tensor:
        v1, v2 = (linear(f) for linear, f in ((self.embed_s, f_s), (self.embed_t, f_t)))
        v1, v2 = (v / v.pow(2).sum(1, keepdim=True).pow(0.5) for v in (v1, v2))
        tau, z_v1, z_v2, _ = (self.params[i].item() for i in range(4))
        loss = self._direction(v1, self.memory_v2, rows, tau, z_v1) + self._direction(
            v2, self.memory_v1, rows, tau, z_v2
        )
        with torch.no_grad():
            index_copy_update(self.memory_v1, idx, v1)
            index_copy_update(self.memory_v2, idx, v2)
        return loss

    def _direction(self, x: Tensor, bank: Tensor, rows: Tensor, tau: float, z: float) -> Tensor:
        batch, k = rows.shape[0], rows.shape[1] - 1
        weight = torch.index_select(bank, 0, rows.view(-1)).view(batch, k + 1, self.dim)
        p = torch.exp(torch.div(torch.bmm(weight, x.view(batch, self.dim, 1)), tau))
        p, c = torch.div(p, z).contiguous(), k / self.num_data
        p_positive, p_negative = p.select(1, 0), p.narrow(1, 1, k)
        positive = torch.div(p_positive, p_positive.add(c + 1e-7)).log_()
        negative = torch.div(p_negative.clone().fill_(c), p_negative.add(c + 1e-7)).log_()
        return -(positive.sum(0) + negative.view(-1, 1).sum(0)).sum() / batch


class Step:
    """Forward and backward of `loss()`, `calls` times in a timed step."""

    def __init__(self, loss: Callable[[], Tensor], calls: int, is_naive: bool = False):
        self.loss, self.calls, self.is_naive = loss, calls, is_naive

    def step(self) -> None:
        for _ in range(self.calls):
            self.loss().backward()


def module_contest(name: str, batch: int, k: int, num_data: int, dim: int) -> Contest:
    g = torch.Generator().manual_seed(0)
    f_s, f_t = (torch.randn(batch, d, generator=g) for d in (S_DIM, T_DIM))
    f_s.requires_grad_()
    idx = torch.randperm(num_data, generator=g)[:batch]
    labels = torch.arange(num_data) % 10
    rows = torch.randint(0, num_data, (batch, k + 1), generator=g)

    def make() -> nn.Module:
        torch.manual_seed(0)
        if name == "WCoRDLoss":
            loss: nn.Module = WCoRDLoss(
                S_DIM, T_DIM, num_data, num_negatives=k, momentum=MOMENTUM, labels=labels, seed=1, feat_dim=dim
            )
        else:
            loss = CRDLoss(S_DIM, T_DIM, num_data, nce_k=k, nce_m=MOMENTUM, labels=labels, seed=1, feat_dim=dim)
        loss(f_s, f_t, idx)  # sets log Z
        return loss

    calls = CALLS if batch * k < 1 << 16 else 1

    def ours() -> Step:
        loss = make()
        return Step(lambda: loss(f_s, f_t, idx), calls)

    def naive() -> Step:
        torch.manual_seed(0)
        loss = NaiveCRD(num_data, dim)
        return Step(lambda: loss(f_s, f_t, idx, rows), calls, is_naive=True)

    @torch.no_grad()
    def errors(form: Step) -> dict[str, float]:
        if form.is_naive:
            loss: nn.Module = NaiveCRD(num_data, dim)
            expected, result = _crd(loss, f_s, f_t, rows), loss(f_s, f_t, idx, rows)
        else:
            loss = make()
            other = copy.deepcopy(loss)
            with use_backend("reference"):
                expected = other(f_s, f_t, idx)
            result = loss(f_s, f_t, idx)
        return {"loss": float((result - expected).abs() / expected.abs())}

    sizes = {"case": name, "batch": batch, "k": k, "num_data": num_data, "dim": dim, "calls": calls}
    return Contest(sizes, {"naive": naive, "ours": ours}, errors, _right)


def ot_contest(n: int, dim: int = 128, iters: int = 50, eps: float = 0.05) -> Contest:
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, dim, generator=g) for _ in range(2))
    x.requires_grad_()

    def naive() -> Tensor:
        cost = 1 - nn.functional.normalize(x, dim=1) @ nn.functional.normalize(y, dim=1).T
        alpha = beta = torch.zeros(n)
        uniform = -math.log(n)
        for _ in range(iters):
            alpha = uniform - torch.logsumexp(beta[None] - cost / eps, 1)
            beta = uniform - torch.logsumexp(alpha[:, None] - cost / eps, 0)
        plan = torch.exp(alpha[:, None] + beta[None] - cost / eps).detach()
        return (plan * cost).sum()

    def ours() -> Tensor:
        return F.ot_cost(x, y, solver="sinkhorn", eps=eps, iters=iters)

    def errors(form: Step) -> dict[str, float]:
        expected = F.ot_cost(x.double(), y.double(), solver="sinkhorn", eps=eps, iters=iters, backend="reference")
        return {"loss": float((form.loss() - expected).detach().abs() / expected.detach().abs())}

    calls = CALLS // 2
    sizes = {"case": "ot_cost", "n": n, "dim": dim, "iters": iters, "calls": calls}
    forms = {"naive": lambda: Step(naive, calls), "ours": lambda: Step(ours, calls)}
    return Contest(sizes, forms, errors, _right)


def _crd(loss: NaiveCRD, f_s: Tensor, f_t: Tensor, rows: Tensor) -> Tensor:
    """The reference backend's CRD loss for the embeddings and banks of `loss`."""
    terms = [
        F.bank_nce(
            nn.functional.normalize(linear(f), dim=1),
            bank,
            rows[:, 0],
            negatives=rows[:, 1:],
            log_z=math.log(loss.num_data),
            temperature=TAU,
            backend="reference",
        ).mean()
        for linear, f, bank in ((loss.embed_s, f_s, loss.memory_v2), (loss.embed_t, f_t, loss.memory_v1))
    ]
    return torch.stack(terms).sum()


def _right(error: dict[str, dict[str, float]]) -> dict[str, bool]:
    return {name: e["loss"] <= LIMIT[name] for name, e in error.items()}


def contests(shapes: list[tuple[int, int, int]], dim: int, sizes: tuple[int, ...] = OT_SIZES) -> Iterator[Contest]:
    for shape in shapes:
        for name in ("CRDLoss", "WCoRDLoss"):
            yield module_contest(name, *shape, dim)
    for n in sizes:
        yield ot_contest(n, dim)


def main(arguments: list[str]) -> int:
    p = parser("host", __doc__, f"B, K and N of {QUICK}")
    p.set_defaults(clock="cpu", repeats=21)
    add_shapes(p, "B,K,N", SHAPES)
    a = parsed(p, arguments)
    rows, fine = run(
        contests([QUICK], a.dim, OT_SIZES[:1]) if a.quick else contests(a.shapes, a.dim), a.repeats, a.clock
    )
    keep("host", rows, a)
    return 0 if fine else 1
