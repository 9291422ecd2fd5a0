"""InfoNCE and the sigmoid loss against the bank beside CRD's NCE: draws, losses and gradients of both directions.

    python -m bench bank_critics [--shapes 64,16384,50000 ...] [--threads 1] [--quick]

Ours by critic and plan, and the best plain PyTorch of the two new critics, which is given its draws. The gate is that
of `bench bank`. `of_nce` is a form's time over that of our NCE by the same plan, in the same run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from bench.bank import CHECKED, errors, right, simd
from bench.bank_providers import TAU, Case
from bench.contest import Contest, fine, measure, show
from bench.floor import critic_floor_ms
from bench.options import add_shapes, keep, parsed, parser
from wcord_fast.ops.bank import directions

SHAPES = ((64, 4096, 50_000), (64, 16384, 50_000), (256, 16384, 50_000))
QUICK = (64, 4096, 20_000)
SCALE, BIAS = torch.tensor(10.0), torch.tensor(-10.0)
CRITICS = ("infonce", "sigmoid")


def losses(critic: str, own: Tensor, others: Tensor) -> Tensor:
    """[B], of the scores [B] of the positives and [B, K] of the negatives, in plain PyTorch."""
    if critic == "infonce":
        return torch.logsumexp(torch.cat((own[:, None], others), 1) / TAU, 1) - own / TAU
    scale, bias = SCALE.to(own.dtype), BIAS.to(own.dtype)
    return softplus(-(scale * own + bias)) + softplus(scale * others + bias).sum(1)


class Plain:
    """All scores [B, N] by one matrix product, take_along_dim, autograd."""

    def __init__(self, case: Case, critic: str, anchors: int | None = None, dtype: torch.dtype = torch.float32):
        self.critic, self.x = critic, case.anchors[:, :anchors].to(dtype)
        self.index, self.rows = case.index[:anchors], case.sampler.draw(case.index)[:anchors]
        self.banks = [bank.to(dtype) for bank in case.banks]

    def step(self) -> tuple[Tensor, Tensor]:
        """Losses [2, B] and gradients [2, B, D]."""
        x = self.x.clone().requires_grad_()
        result = []
        for anchors, bank in zip(x, self.banks, strict=True):
            score = anchors @ bank.T
            own = torch.take_along_dim(score, self.index[:, None], 1)[:, 0]
            result.append(losses(self.critic, own, torch.take_along_dim(score, self.rows, 1)))
        loss = torch.stack(result)
        (grad,) = torch.autograd.grad(loss.sum(), x)
        return loss.detach(), grad


class OurCritic:
    """This library by one plan, called as a loss module calls it; the draws are part of the time."""

    def __init__(self, case: Case, critic: str, plan: str):
        self.case, self.critic, self.plan = case, critic, plan

    def step(self) -> tuple[Tensor, Tensor]:
        """Losses [2, B] and gradients [2, B, D]."""
        case, x = self.case, self.case.anchors.clone().requires_grad_()
        rest = (case.sampler.spec(), TAU, self.plan, "native")
        if self.critic == "nce":
            loss = directions.nce(x, case.banks, case.index, case.log_z, *rest)
        elif self.critic == "infonce":
            loss = directions.infonce(x, case.banks, case.index, None, *rest)
        else:
            loss = directions.sigmoid(x, case.banks, case.index, None, SCALE, BIAS, rest[0], *rest[2:])
        loss.sum().backward()
        return loss.detach(), x.grad


def contest(shape: tuple[int, int, int], dim: int = 128) -> Contest:
    """The forms at (B, K, N). They share the banks, which no form writes."""
    case = Case(*shape, dim)
    few = min(CHECKED, case.batch)
    answers = {critic: Plain(case, critic, few, torch.float64).step() for critic in CRITICS}
    answers["nce"] = case.answers(few)
    forms: dict[str, Callable[[], Any]] = {f"{critic}, plain": partial(Plain, case, critic) for critic in CRITICS}
    for plan in ("gather", "dense"):
        forms |= {f"{critic}, {plan}": partial(OurCritic, case, critic, plan) for critic in ("nce", *CRITICS)}
    sizes = dict(zip(("batch", "k", "num_data", "dim"), (*shape, dim), strict=True))
    return Contest(
        sizes,
        forms,
        lambda form: errors(form, answers[form.critic]),
        right,
        theirs=tuple(f"{critic}, plain" for critic in CRITICS),
        floor=partial(critic_floor_ms, *shape, dim),
        notes={"simd": simd()},
    )


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`rows` of one contest; ours get `of_nce`, their time over that of NCE, which is printed too."""
    time = {row["form"]: row["ms"]["p50"] for row in rows if "ms" in row}
    for row in rows:
        nce = time.get(f"nce, {row['form'].split(', ')[1]}")
        if nce and row["form"] in time:
            row["of_nce"] = round(time[row["form"]] / nce, 3)
            print(f"{row['form']}: {row['of_nce']:.3f} of nce's time")
    return rows


def quick_contests() -> list[Contest]:
    return [contest(QUICK)]


def main(arguments: list[str]) -> int:
    p = parser("bank_critics", __doc__, f"the shape {QUICK}")
    add_shapes(p, "B,K,N", SHAPES)
    a = parsed(p, arguments)
    rows, all_fine = [], True
    for one in quick_contests() if a.quick else (contest(s, a.dim) for s in a.shapes):
        result = measure(one, a.repeats, a.clock)
        show(one, result)
        all_fine &= fine(one, result)
        rows += with_ratios(result)
    keep("bank_critics", rows, a)
    return 0 if all_fine else 1
