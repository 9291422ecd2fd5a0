"""Optimal transport on a GPU: ours by one launch, the naive loop, plain PyTorch and GeomLoss where it is installed."""

from __future__ import annotations

import json
from typing import Any

import torch

from bench.gpu_measure import call_times, eager_times, graphed, peak_megabytes, tried
from bench.ot import VALUE_LIMIT
from bench.ot_providers import PROVIDERS, Case, ours

CASES = [(s, e, n) for s, e in (("sinkhorn", 0.05), ("ipot", 0.5)) for n in (64, 256, 1024, 4096)]
OTHERS = ("naive, unrolled", "naive, envelope", "exp once, plain PyTorch", "GeomLoss")
FLOORS = {64: 20, 256: 40, 1024: 100, 4096: 500}  # microseconds on an H200, estimated; sinkhorn, value and gradient
SLOW = 1024  # above it the others are timed eagerly only


def ot_rows(cases=None, device: torch.device | None = None, dim: int = 128) -> list[dict[str, Any]]:
    """A row per case and provider: value and both gradients, 50 iterations, cosine, against float64."""
    device = device or torch.device("cuda")
    rows = []
    for solver, eps, n in cases or CASES:
        case = Case(n, dim, solver, eps, 50)
        torch.manual_seed(0)
        x, y = (torch.randn(n, dim, device=device) for _ in range(2))
        for name, make in {"ours": ours("auto"), **{name: PROVIDERS[name] for name in OTHERS}}.items():
            calls = make(case, x, y)
            if calls is None:
                continue
            row = {"part": "ot", "provider": name, "solver": solver, "eps": eps, "n": n}

            def measure(calls=calls, name=name, x=x, y=y, case=case) -> dict[str, Any]:
                found: dict[str, Any] = {"value_error": value_error(calls, case, x, y)}
                if name == "ours":
                    found["right"] = found["value_error"] <= VALUE_LIMIT
                found["peak_mb"] = peak_megabytes(calls.gradient, device)
                found["eager_us"] = eager_times(calls.gradient, device)
                if name == "ours" or case.n <= SLOW:
                    found["us"] = call_times(graphed(calls.gradient, device), device)
                if name == "ours" and case.solver == "sinkhorn" and dim == 128:
                    found["percent_of_floor"] = round(100 * FLOORS[case.n] / found["us"]["p50"], 1)
                return found

            rows.append(tried(row, measure))
            print(json.dumps(rows[-1]), flush=True)
    return rows


def value_error(calls, case: Case, x: torch.Tensor, y: torch.Tensor) -> float:
    """Relative error of a provider's value against ours in float64 on the same device."""
    from wcord_fast import functional as F

    backend = "auto" if x.is_cuda else "native"
    options = {"solver": case.solver, "eps": case.eps, "iters": case.iters, "backend": backend, "value": calls.value}
    exact = float(F.ot_cost(x.double(), y.double(), **options))
    return abs(float(calls.gradient()[0]) - exact) / abs(exact)
