"""`python -m bench ot_matrix`: G transport problems that share one given cost, ours against plain PyTorch.

Plain PyTorch is the exponential of the cost once, two matrix products an iteration for all problems, and the plan
as the gradient by hand, without autograd: its best form. It is NaN where scalings leave fp32. Times are processor time,
interleaved, forward and gradient; errors are those against float64 at equal iterations. One JSON line per row goes to
bench/results/ot_matrix.jsonl.
"""

from __future__ import annotations

import argparse
import math
import os
from functools import partial
from pathlib import Path

from bench import ot
from bench.results_file import append

PLAIN = "plain PyTorch, shared cost"
SHAPES = ((64, 100), (256, 100), (64, 1000))  # problems, classes
EPS = (0.05, 0.005)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench ot_matrix", description=__doc__)
    parser.add_argument("--iters", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=2.0, help="time per provider")
    parser.add_argument("--rounds", type=int, default=5, help="at the least")
    parser.add_argument("--quick", action="store_true", help="100 classes only, nothing written without --out")
    parser.add_argument("--out", type=Path, help="folder of the result file (default bench/results)")
    return parser.parse_args(argv)


def plain(c, a, b, eps: float, iters: int):
    """(mean of <P, C> over the problems, its gradient in C)."""
    import torch

    kernel = torch.exp(-c / eps)
    v = torch.ones_like(b)
    for _ in range(iters):
        u = a / (v @ kernel.T)
        v = b / (u @ kernel)
    value = ((u @ (kernel * c)) * v).sum(-1).mean()
    return value, kernel * (u.T @ v) / len(a)


def ours(c, a, b, eps: float, iters: int):
    from wcord_fast import functional as F

    leaf = c.detach().requires_grad_()
    value = F.ot_cost_from_matrix(leaf, a, b, eps=eps, iters=iters).mean()
    value.backward()
    return value.detach(), leaf.grad


def main(argv: list[str]) -> int:
    options = parse(argv)
    options.clock = "cpu"
    ot.limit_threads(1)
    import torch

    torch.set_num_threads(1)
    fine = True
    for problems, classes in SHAPES[:2] if options.quick else SHAPES:
        torch.manual_seed(0)
        features = torch.nn.functional.normalize(torch.randn(classes, 64), dim=-1)
        c = (1 - features @ features.T).clamp_min(0)
        a, b = ((2 * torch.randn(problems, classes)).softmax(-1) for _ in range(2))
        for eps in EPS:
            exact = plain(c.double(), a.double(), b.double(), eps, options.iters)
            calls = {
                (name, "both"): partial(run, c, a, b, eps, options.iters)
                for name, run in ((ot.OURS, ours), (PLAIN, plain))
            }
            times = ot.summary(ot.interleaved(calls, options))
            base, rows = times[PLAIN, "both"]["p50"], []
            for (name, _), run in calls.items():
                value, gradient = run()
                result = times[name, "both"]
                row = {"provider": name, "problems": problems, "classes": classes, "eps": eps, "iters": options.iters}
                row |= {"load": os.getloadavg()[0], "clock": "cpu", **result, "multiple": result["p50"] / base}
                row["value_error"] = float((value - exact[0]).abs() / exact[0])
                row["gradient_error"] = float((gradient - exact[1]).norm() / exact[1].norm())
                for error in ("value_error", "gradient_error"):
                    row[error] = row[error] if math.isfinite(row[error]) else None  # NaN is no JSON
                rows.append(row)
                print(
                    f"{problems:>5} x {classes:<5} eps {eps:<6g} {name:<28}{result['p50']:>8.3g} ms"
                    f"{row['multiple']:>6.2f}  errors {row['value_error']} {row['gradient_error']}",
                    flush=True,
                )
            good = rows[0]
            fine &= good["value_error"] is not None and good["value_error"] <= ot.VALUE_LIMIT
            fine &= good["gradient_error"] is not None and good["gradient_error"] <= ot.GRADIENT_LIMIT
            if options.out or not options.quick:
                append("ot_matrix", rows, options.out)
    return 0 if fine else 1
