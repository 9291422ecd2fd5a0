"""`python -m bench project`: doubly stochastic projections of many small matrices, ours against plain PyTorch.

Plain PyTorch divides exp(logits) by its row and column sums, 20 times each, in fp32; its autograd goes back through all
of it. Times are processor time of one thread, interleaved, forward and gradient; errors are those against float64. One
JSON line per row goes to bench/results/project.jsonl.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

from bench import ot
from bench.results_file import append

PLAIN = "plain PyTorch, divisions"
SHAPES = ((4096, 4), (1024, 8), (1024, 16))  # matrices, rows
ITERS = 20
LIMIT = 1e-4  # of the gradient's error, relative


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench project", description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="time per provider")
    parser.add_argument("--rounds", type=int, default=5, help="at the least")
    parser.add_argument("--quick", action="store_true", help="4 x 4 only, nothing written without --out")
    parser.add_argument("--out", type=Path, help="folder of the result file (default bench/results)")
    return parser.parse_args(argv)


def plain(logits):
    import torch

    p = torch.exp(logits)
    for _ in range(ITERS):
        p = p / p.sum(-1, keepdim=True)
        p = p / p.sum(-2, keepdim=True)
    return p


def ours(logits):
    from wcord_fast import functional as F

    return F.sinkhorn_project(logits, ITERS)


def both(run, logits, weight):
    """(matrices, gradient of their product with `weight`)."""
    leaf = logits.detach().requires_grad_()
    p = run(leaf)
    p.backward(weight)
    return p.detach(), leaf.grad


def main(argv: list[str]) -> int:
    options = parse(argv)
    options.clock = "cpu"
    ot.limit_threads(1)
    import torch

    torch.set_num_threads(1)
    fine = True
    for problems, n in SHAPES[:1] if options.quick else SHAPES:
        torch.manual_seed(0)
        logits, weight = torch.randn(problems, n, n), torch.randn(problems, n, n)
        exact = both(plain, logits.double(), weight.double())
        providers = ((ot.OURS, ours), (PLAIN, plain))
        calls = {(name, "both"): partial(both, run, logits, weight) for name, run in providers}
        times = ot.summary(ot.interleaved(calls, options))
        base, rows = times[PLAIN, "both"]["p50"], []
        for (name, _), run in calls.items():
            errors = [
                float((result - expected).norm() / expected.norm())
                for result, expected in zip(run(), exact, strict=True)
            ]
            result = times[name, "both"]
            row = {"provider": name, "problems": problems, "n": n, "iters": ITERS, "load": os.getloadavg()[0]}
            row |= {"clock": "cpu", **result, "multiple": result["p50"] / base}
            rows.append(row | {"value_error": errors[0], "gradient_error": errors[1]})
            print(
                f"{problems:>5} of {n:>2}  {name:<26}{result['p50']:>8.3g} ms{row['multiple']:>7.3f}  errors {errors}"
            )
        fine &= rows[0]["gradient_error"] <= LIMIT
        if options.out or not options.quick:
            append("project", rows, options.out)
    return 0 if fine else 1
