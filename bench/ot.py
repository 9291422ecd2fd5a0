"""`python -m bench ot`: the transport cost of two feature batches, ours against everybody's.

Times are medians (p20-p80) of interleaved blocks: each round calls every provider, forward and with the gradient, for
some 10 ms each, or once. Every provider's value and gradient are compared with float64 at equal iterations before
anything is timed, and a speed-up over a provider is printed only if ours passed. Last, per size, ours at all eps and
both solvers in turn (ot_sweep.py). One JSON line per row goes to
bench/results/ot.jsonl and ot_sweep.jsonl. With one thread, given costs (ot_matrix.py) and projections (project.py)
follow.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from bench.measure import CLOCKS, peak_megabytes, quantiles

OURS = "ours, native"
VALUE_LIMIT, GRADIENT_LIMIT = 1e-5, 1e-4  # relative error of ours; or 2 and 3 times that of the naive fp32 loop
SLOW = 5.0  # seconds a call may take before one round has to do
BLOCK = 0.01  # seconds of calls, one after another, in one round
CASES = (("sinkhorn", 0.05), ("sinkhorn", 1e-3), ("ipot", 0.5))


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench ot", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 1024, 4096], help="n = m")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--iters", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", help="providers (substrings); ours is always in")
    parser.add_argument("--skip", nargs="+", default=[], help="providers (substrings) to leave out")
    parser.add_argument("--cases", nargs="+", help="of sinkhorn:0.05 sinkhorn:0.001 ipot:0.5 sweep ot_matrix project")
    parser.add_argument("--seconds", type=float, default=2.0, help="time per provider and kind of call")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: the time this process has run, for a machine that others use too; only for one thread",
    )
    parser.add_argument(
        "--quick", action="store_true", help="sizes 64 and 256, the quicker providers, nothing written without --out"
    )
    parser.add_argument("--out", type=Path, help="folder of the result files (default bench/results)")
    parser.add_argument("--rounds", type=int, default=5, help="at the least")
    options = parser.parse_args(argv)
    if options.clock == "cpu" and options.threads > 1:
        parser.error("--clock cpu adds up the time of all threads: use it with --threads 1")
    if options.quick:
        options.sizes, options.seconds, options.rounds = [n for n in options.sizes if n <= 256] or [64], 0.05, 3
        options.skip = [*options.skip, "torch.compile", "OTT-JAX", "POT, log", "ours, reference"]
        options.cases = options.cases or [f"{solver}:{eps:g}" for solver, eps in CASES]
    return options


def limit_threads(threads: int) -> None:
    """Cores as well as threads, so that no provider takes more than its share. Before torch and jax are imported."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("XLA_FLAGS", f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def oracle(case, x, y, value: str) -> tuple[float, Any, Any, str]:
    """(value, gradients, who) in float64 at equal iterations."""
    import torch

    from wcord_fast import functional as F

    backend = "reference" if case.n <= 1024 else "native"  # the reference takes a minute; tests tie native to it
    xs = [t.double().requires_grad_() for t in (x, y)]
    options = {"solver": case.solver, "eps": case.eps, "iters": case.iters, "backend": backend, "value": value}
    cost = F.ot_cost(*xs, **options)
    return cost.item(), *torch.autograd.grad(cost, xs), backend


def as_double(array: Any):
    import numpy as np
    import torch

    return array.double() if isinstance(array, torch.Tensor) else torch.from_numpy(np.array(array, dtype=np.float64))


def probe(calls) -> tuple[tuple[Any, Any, Any], float]:
    """(value and gradients, peak memory) of a first call, or of a second one if the first was not slow."""
    results = []
    start = time.perf_counter()
    peak = peak_megabytes(lambda: results.append(calls.gradient()))
    if time.perf_counter() - start < SLOW:
        calls.forward()
        peak = peak_megabytes(calls.gradient)
    return results[0], peak


def errors(calls, actual, want) -> tuple[float, float]:
    """(relative value error, relative gradient error in the maximum norm; NaN if it is another gradient)."""
    value, *grads = actual
    off = abs(float(value) - want[0]) / abs(want[0])
    if not calls.same_gradient:
        return off, math.nan
    pairs = list(zip(map(as_double, grads), want[1:3], strict=True))
    worst = [((actual - exact).abs().max() / exact.abs().max()).item() for actual, exact in pairs]
    return off, math.nan if any(map(math.isnan, worst)) else max(worst)


def interleaved(calls: dict[tuple[str, str], Any], options: argparse.Namespace) -> dict[tuple[str, str], list[float]]:
    """Milliseconds per call of every (provider, kind of call), block by block in turn; a slow one is called once."""
    clock, seconds = CLOCKS[options.clock], options.seconds
    first = {key: block_seconds(call, 1, clock) for key, call in calls.items()}
    first |= {key: block_seconds(call, 1, clock) for key, call in calls.items() if first[key] <= SLOW}  # warm
    inner = {key: max(1, int(BLOCK / took)) for key, took in first.items()}
    times = {key: [1e3 * took] if took > SLOW else [] for key, took in first.items()}
    spent = dict.fromkeys(calls, 0.0)
    for round_number in range(1000):
        early = round_number < options.rounds
        active = [key for key in calls if first[key] <= SLOW and (early or spent[key] < seconds)]
        if not early and not any(name == OURS for name, _ in active):
            break
        for key in active:
            calls[key]()  # as in a training loop: brings back what the previous provider evicted from the caches
            took = block_seconds(calls[key], inner[key], clock)
            times[key].append(took * 1e3 / inner[key])
            spent[key] += took
    return times


def block_seconds(call, times: int, clock) -> float:
    start = clock()
    for _ in range(times):
        call()
    return clock() - start


def summary(times: dict[tuple[str, str], list[float]]) -> dict[tuple[str, str], dict[str, float]]:
    return {key: quantiles(values) | {"calls": len(values)} for key, values in times.items()}


def passes(errors: dict[str, tuple[float, float]]) -> bool:
    """Whether ours is as exact as the design asks for."""
    value, gradient = errors[OURS]
    naive = errors.get("naive, envelope", (0.0, 0.0))
    return value <= max(VALUE_LIMIT, 2 * naive[0]) and gradient <= max(GRADIENT_LIMIT, 3 * naive[1])


def run_case(case, options: argparse.Namespace) -> list[dict[str, Any]]:
    import torch

    from bench.ot_providers import PROVIDERS

    torch.manual_seed(0)
    x, y = torch.randn(case.n, case.dim), torch.randn(case.n, case.dim)
    made = {}
    for name, make in PROVIDERS.items():
        wanted = name == OURS or options.only is None or any(part in name for part in options.only)
        if wanted and not any(part in name for part in options.skip) and (calls := make(case, x, y)) is not None:
            made[name] = calls
    exact = {kind: oracle(case, x, y, kind) for kind in dict.fromkeys(c.value for c in made.values())}
    probed = {name: probe(calls) for name, calls in made.items()}
    result = {name: errors(calls, probed[name][0], exact[calls.value]) for name, calls in made.items()}
    calls = {}
    for name, made_calls in made.items():
        calls[name, "forward"], calls[name, "both"] = made_calls.forward, made_calls.gradient
    times = summary(interleaved(calls, options))
    fine = passes(result)
    rows = []
    for name in made:
        row = {"op": "ot", "provider": name, **vars(case), "passed": fine, "oracle": exact[made[name].value][3]}
        row |= {"value_error": result[name][0], "gradient_error": result[name][1], "peak_mb": probed[name][1]}
        row |= {"peak_matrices": probed[name][1] * 2**20 / (4 * case.n**2), "load": os.getloadavg()[0]}
        row["clock"] = options.clock
        for kind in ("forward", "both"):
            row |= {f"{kind}_{k}": v for k, v in times[name, kind].items()}
            if fine:
                row[f"{kind}_ratio"] = times[name, kind]["p50"] / times[OURS, kind]["p50"]
        row["both_over_forward"] = times[name, "both"]["p50"] / times[name, "forward"]["p50"]
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    first = rows[0]
    verdict = "ours passed its check" if first["passed"] else "OURS FAILED ITS CHECK: no speed-ups"
    print(f"\n{first['solver']} eps {first['eps']:g}, n = m = {first['n']}, D = {first['dim']}: {verdict}")
    clock = f"{first['clock']} ms: p50 (p20-p80)"
    print(
        f"{clock:<26}{'forward':>28}{'x':>7}{'forward + gradient':>28}{'x':>7}{'/ fwd':>7}"
        f"{'peak MB':>9}{'matrices':>9}  error"
    )
    for row in rows:
        cells = [f"{row[f'{k}_p50']:.3g} ({row[f'{k}_p20']:.3g}-{row[f'{k}_p80']:.3g})" for k in ("forward", "both")]
        ratios = [f"{row[f'{k}_ratio']:.1f}" if f"{k}_ratio" in row else "-" for k in ("forward", "both")]
        gradient = "other" if math.isnan(row["gradient_error"]) else f"{row['gradient_error']:.0e}"
        print(
            f"{row['provider']:<26}{cells[0]:>28}{ratios[0]:>7}{cells[1]:>28}{ratios[1]:>7}"
            f"{row['both_over_forward']:>7.2f}{row['peak_mb']:>9.1f}{row['peak_matrices']:>9.2f}"
            f"  {row['value_error']:.0e} {gradient}"
        )
    sys.stdout.flush()


def main(argv: list[str]) -> int:
    options = parse(argv)
    limit_threads(options.threads)
    import torch

    from bench import ot_sweep
    from bench.ot_providers import Case
    from bench.results_file import append

    torch.set_num_threads(options.threads)
    fine = True
    for solver, eps in CASES:
        if options.cases and f"{solver}:{eps:g}" not in options.cases:
            continue
        for n in options.sizes:
            torch.compiler.reset()  # code of other cases counts against a limit
            case = Case(n, options.dim, solver, eps, options.iters)
            rows = run_case(case, options)
            show(rows)
            fine &= rows[0]["passed"]
            if options.out or not options.quick:
                append("ot", rows, options.out)
    if not options.cases or "sweep" in options.cases:
        ot_sweep.run(options)
    more = ["--quick"] * options.quick + (["--out", str(options.out)] if options.out else [])
    for subject in ("ot_matrix", "project"):
        if options.threads == 1 and (not options.cases or subject in options.cases):
            print(f"\n{subject}", flush=True)
            fine &= importlib.import_module(f"bench.{subject}").main(more) == 0
    return 0 if fine else 1
