"""`python -m bench ot_matrix`: many transport problems with given costs, ours against plain PyTorch and POT.

Three kinds: "shared", one cost for all problems; "own", one each; "unbalanced", a shared cost with `reach`. Plain
PyTorch is the exponential of the cost once, two products an iteration for all problems, and the plan as the gradient by
hand, without autograd: its best form; then the same in an autograd function, which a loss needs. It is NaN where
scalings leave fp32. POT is `ot.batch`, which needs a cost per problem, or its unbalanced solver, one problem after the
other, whose iteration starts elsewhere: its error at equal iterations says how far it is. GeomLoss makes its cost from
points. Times are processor time, interleaved, forward and gradient in C. Errors are those against float64 at equal
iterations. One JSON line per row goes to bench/results/ot_matrix.jsonl.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import math
import os
from functools import partial
from pathlib import Path
from typing import Any

from bench import ot
from bench.results_file import append

PLAIN = "plain PyTorch"
LOSS = "plain PyTorch, autograd"
SHAPES = ((64, 100), (256, 100), (64, 1000))  # problems, classes, of a shared cost
EPS = (0.05, 0.005)
REACH = 1.0
CASES = (
    *(("shared", *shape, eps) for shape in SHAPES for eps in EPS),
    ("own", 64, 100, 0.05),
    ("own", 256, 32, 0.05),
    ("unbalanced", 64, 100, 0.05),
)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench ot_matrix", description=__doc__)
    parser.add_argument("--iters", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=2.0, help="time per provider")
    parser.add_argument("--rounds", type=int, default=5, help="at the least")
    parser.add_argument(
        "--quick", action="store_true", help="64 problems of at most 100 classes, nothing written without --out"
    )
    parser.add_argument("--out", type=Path, help="folder of the result file (default bench/results)")
    return parser.parse_args(argv)


def plain(c, a, b, eps: float, iters: int, reach: float | None = None):
    """(mean of <P, C> over the problems, its gradient in C [n, m] or [G, n, m])."""
    import torch

    damp = 1 if reach is None else reach / (reach + eps)
    kernel = torch.exp(-c / eps)
    if c.dim() == 3:
        a, b = a.unsqueeze(1), b.unsqueeze(1)
    v = torch.ones_like(b)
    for _ in range(iters):
        u = a / (v @ kernel.mT) if damp == 1 else a / (v @ kernel.mT) ** damp
        v = b / (u @ kernel) if damp == 1 else b / (u @ kernel) ** damp
    value = ((u @ (kernel * c)) * v).sum() / len(a)
    return value, kernel * (u.mT @ v) / len(a)


@functools.cache
def mean_cost():
    """`plain` as an autograd function of the cost, which keeps the gradient."""
    import torch

    class MeanCost(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *problem):
            value, gradient = plain(*problem)
            ctx.save_for_backward(gradient)
            return value

        @staticmethod
        def backward(ctx, weight):
            return weight * ctx.saved_tensors[0], None, None, None, None, None

    return MeanCost.apply


def differentiated(loss, c, a, b, eps: float, iters: int, reach: float | None):
    leaf = c.detach().requires_grad_()
    value = loss(leaf, a, b, eps, iters, reach)
    value.backward()
    return value.detach(), leaf.grad


def plain_loss(c, a, b, eps: float, iters: int, reach: float | None = None):
    return differentiated(mean_cost(), c, a, b, eps, iters, reach)


def ours(c, a, b, eps: float, iters: int, reach: float | None = None):
    from wcord_fast import functional as F

    def loss(c, a, b, eps, iters, reach):
        return F.ot_cost_from_matrix(c, a, b, eps=eps, iters=iters, reach=reach).mean()

    return differentiated(loss, c, a, b, eps, iters, reach)


def pot(method: str, c, a, b, eps: float, iters: int, reach: float | None = None):
    import torch
    from ot.batch import solve_batch
    from ot.unbalanced import sinkhorn_knopp_unbalanced

    if reach is None:
        costs = c.expand(len(a), *c.shape[-2:])
        plans = solve_batch(costs, eps, a, b, max_iter=iters, tol=0, method=method, grad="detach").plan
    else:
        each = [
            sinkhorn_knopp_unbalanced(*m, c, eps, reach, numItermax=iters, stopThr=0) for m in zip(a, b, strict=True)
        ]
        plans = torch.stack(each)
    return (plans * c).sum() / len(a), (plans if c.dim() == 3 else plans.sum(0)) / len(a)


def providers(kind: str, eps: float) -> dict[str, Any]:
    """A function like `plain` for every provider that is installed and solves this kind."""
    found = {ot.OURS: ours, PLAIN: plain, LOSS: plain_loss}
    if importlib.util.find_spec("ot") is not None:
        if kind == "unbalanced":
            return found | {"POT, one by one": partial(pot, "sinkhorn")}
        found["POT, ot.batch in logs"] = partial(pot, "log_sinkhorn")
        if eps >= EPS[0]:
            found["POT, ot.batch"] = partial(pot, "sinkhorn")
    return found


def problem(kind: str, problems: int, classes: int):
    """The cost [n, n] or [G, n, n], 1 less the cosines of random features, and masses a and b [G, n]."""
    import torch

    torch.manual_seed(0)
    shape = (problems, classes, 64) if kind == "own" else (classes, 64)
    features = torch.nn.functional.normalize(torch.randn(*shape), dim=-1)
    a, b = ((2 * torch.randn(problems, classes)).softmax(-1) for _ in range(2))
    return (1 - features @ features.mT).clamp_min(0), a, b


def run_case(kind: str, problems: int, classes: int, eps: float, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per provider, ours first."""
    reach = REACH if kind == "unbalanced" else None
    inputs = problem(kind, problems, classes)
    exact = plain(*(t.double() for t in inputs), eps, options.iters, reach)
    calls = {
        (name, "both"): partial(run, *inputs, eps, options.iters, reach) for name, run in providers(kind, eps).items()
    }
    times = ot.summary(ot.interleaved(calls, options))
    base, rows = times[PLAIN, "both"]["p50"], []
    for (name, _), run in calls.items():
        value, gradient = run()
        row = {"provider": name, "kind": kind, "problems": problems, "classes": classes, "eps": eps}
        row |= {"iters": options.iters, "load": os.getloadavg()[0], "clock": "cpu", **times[name, "both"]}
        row["multiple"] = row["p50"] / base
        row["value_error"] = float((value - exact[0]).abs() / exact[0])
        row["gradient_error"] = float((gradient - exact[1]).norm() / exact[1].norm())
        for error in ("value_error", "gradient_error"):
            row[error] = row[error] if math.isfinite(row[error]) else None  # NaN is no JSON
        rows.append(row)
        errors = ", ".join("NaN" if row[e] is None else f"{row[e]:.0e}" for e in ("value_error", "gradient_error"))
        print(
            f"{kind:<11}{problems:>5} x {classes:<5} eps {eps:<6g} {name:<24}{row['p50']:>9.3g} ms"
            f"{row['multiple']:>7.2f}  errors {errors}",
            flush=True,
        )
    return rows


def main(argv: list[str]) -> int:
    options = parse(argv)
    options.clock = "cpu"
    ot.limit_threads(1)
    import torch

    torch.set_num_threads(1)
    fine = True
    for kind, problems, classes, eps in CASES:
        if options.quick and (problems > 64 or classes > 100):
            continue
        rows = run_case(kind, problems, classes, eps, options)
        good = rows[0]
        fine &= good["value_error"] is not None and good["value_error"] <= ot.VALUE_LIMIT
        fine &= good["gradient_error"] is not None and good["gradient_error"] <= ot.GRADIENT_LIMIT
        if options.out or not options.quick:
            append("ot_matrix", rows, options.out)
    return 0 if fine else 1
