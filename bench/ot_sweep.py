"""Ours against itself: every eps and both solvers at one size, in turn, as multiples of sinkhorn at eps 0.05."""

from __future__ import annotations

import os
from argparse import Namespace

import torch

from bench import ot
from bench.ot_providers import PROVIDERS, Case
from bench.results_file import append

BASE = ("sinkhorn", 0.05)
SWEEP = (BASE, ("sinkhorn", 0.5), ("sinkhorn", 0.01), ("sinkhorn", 1e-3), ("sinkhorn", 1e-4), ("ipot", 0.5))


def run(options: Namespace) -> None:
    """Measure, print and append one row per (size, solver, eps)."""
    for n in options.sizes:
        torch.manual_seed(0)
        x, y = torch.randn(n, options.dim), torch.randn(n, options.dim)
        cases = [Case(n, options.dim, solver, eps, options.iters) for solver, eps in SWEEP]
        made = [PROVIDERS[ot.OURS](case, x, y) for case in cases]
        calls = {}
        for i, ours in enumerate(made):
            calls[ot.OURS, f"{i} forward"], calls[ot.OURS, f"{i} both"] = ours.forward, ours.gradient
        times = ot.summary(ot.interleaved(calls, options))
        print(f"\nours, n = m = {n}, D = {options.dim}{'forward ms':>20}{'x':>7}{'+ gradient':>14}{'x':>7}  error")
        rows = []
        for i, (case, ours) in enumerate(zip(cases, made, strict=True)):
            value, gradient = ot.errors(ours, ours.gradient(), ot.oracle(case, x, y, "cost"))
            row = {"provider": ot.OURS, **vars(case), "load": os.getloadavg()[0]}
            row["clock"] = options.clock
            row |= {"value_error": value, "gradient_error": gradient}
            for kind in ("forward", "both"):
                result, base = times[ot.OURS, f"{i} {kind}"], times[ot.OURS, f"0 {kind}"]
                row |= {f"{kind}_{k}": v for k, v in result.items()}
                row[f"{kind}_multiple"] = result["p50"] / base["p50"]
            rows.append(row)
            print(
                f"{case.solver:<10}eps {case.eps:<8g}{row['forward_p50']:>24.3g}{row['forward_multiple']:>7.2f}"
                f"{row['both_p50']:>14.3g}{row['both_multiple']:>7.2f}  {value:.0e} {gradient:.0e}",
                flush=True,
            )
        if options.out or not options.quick:
            append("ot_sweep", rows, options.out)
