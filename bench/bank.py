"""The bank: one CRD step (both directions, loss, gradients, update) against the naive form and plain PyTorch.

    python -m bench bank [--shapes 64,16384,50000 ...] [--threads 1] [--quick] [--sweep] [--fit]

One process, interleaved, medians. A ratio is printed only for a form that equals float64 in this very run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch

from bench.bank_providers import Case, Compiled, Form, Naive, Ours, Plain
from bench.contest import Contest, run
from bench.floor import critic_floor_ms
from bench.measure import interleaved, peak_megabytes
from bench.options import add_shapes, keep, parsed, parser
from wcord_fast.ops import native_module
from wcord_fast.ops.bank import native_cpu

SHAPES = (
    (64, 16384, 50_000),
    (64, 4096, 50_000),
    (256, 16384, 50_000),
    (1024, 65536, 1_281_167),
    (1024, 4096, 1_281_167),
)
QUICK = (64, 4096, 20_000)
LARGE = 1 << 24  # draws above which the baselines do not fit or take minutes
CHECKED = 8  # anchors compared with float64
LIMITS = {
    "loss": 1e-6,
    "grad": 1e-5,
}  # relative; the baselines, which lose bits by design, may lose this many times more
SLACK = {"naive": 1000, "plain": 10, "compile": 10}


def providers(case: Case) -> dict[str, Callable[[], Form]]:
    """Makers of the forms to compare; the large shapes have room for ours alone."""
    if case.batch * case.k >= LARGE or case.num_data > 10**6:
        return {"gather": lambda: Ours(case, "gather", copy=False)}
    ours = {plan: lambda plan=plan: Ours(case, plan) for plan in ("gather", "dense")}
    return {"naive": lambda: Naive(case), "plain": lambda: Plain(case), "compile": lambda: Compiled(case), **ours}


def errors(provider, expected) -> dict[str, float]:
    """Largest relative errors of the first anchors' losses and gradients; takes a step."""
    loss, grad = (t[:, :CHECKED].double() for t in provider.step())
    return {
        "loss": float(((loss - expected[0]) / expected[0]).abs().max()),
        "grad": float(((grad - expected[1]).norm(dim=2) / expected[1].norm(dim=2)).max()),
    }


def right(error: dict[str, dict[str, float]]) -> dict[str, bool]:
    return {name: all(e[part] <= LIMITS[part] * SLACK.get(name, 1) for part in LIMITS) for name, e in error.items()}


def contest(shape: tuple[int, int, int], dim: int = 128, skip: Iterable[str] = ()) -> Contest:
    """The forms of a step at (B, K, N)."""
    case = Case(*shape, dim)
    expected = case.answers(min(CHECKED, case.batch))
    sizes = dict(zip(("batch", "k", "num_data", "dim"), (*shape, dim), strict=True))
    forms = {name: make for name, make in providers(case).items() if name not in skip}
    floor = partial(critic_floor_ms, *shape, dim)
    return Contest(sizes, forms, lambda form: errors(form, expected), right, floor=floor, notes={"simd": simd()})


def quick_contests() -> list[Contest]:
    return [contest(QUICK, skip=["compile"])]


def simd() -> str:
    return native_module.module().simd()


def sweep(repeats: int, clock: str) -> list[dict[str, Any]]:
    """Cost against K, N and B by both plans: gather is linear in B * K, dense flat in K."""
    base = {"batch": 64, "k": 8192, "num_data": 50_000}
    along = {
        "k": (512, 1024, 2048, 4096, 8192, 16384, 32768),
        "num_data": (12_500, 25_000, 50_000, 100_000, 200_000),
        "batch": (1, 4, 16, 64, 256),
    }
    rows = []
    for name, values in along.items():
        for value in values:
            sizes = base | {name: value}
            case = Case(**sizes)
            calls = {plan: Ours(case, plan, copy=False).step for plan in ("gather", "dense")}
            for call in calls.values():
                call()
            memory = {plan: peak_megabytes(call) for plan, call in calls.items()}
            before = critic_floor_ms(*sizes.values(), case.dim)
            times = interleaved(calls, repeats, clock)
            floor = min(before, critic_floor_ms(*sizes.values(), case.dim))
            for plan, t in times.items():
                row = {"sweep": name, **sizes, "form": plan, "clock": clock, "ms": t, "peak_mb": memory[plan]}
                rows.append(row | {"floor_ms": floor, "percent_of_floor": round(100 * floor / t["p50"], 1)})
            shown = "  ".join(f"{r['form']} {r['ms']['p50']:8.2f} ms" for r in rows[-2:])
            print(f"{name} = {value:7}: {shown}", flush=True)
    return rows


def fit(repeats: int, clock: str) -> list[dict[str, Any]]:
    """The constants of ops/bank/plan.py for native code on this CPU: least squares over shapes, in nanoseconds."""
    print("Cost(score, score_dim, bank_dim) of one direction, for COSTS in wcord_fast/ops/bank/plan.py:")
    rows = []
    for plan in ("gather", "dense"):
        lines, times = [], []
        for batch, k, num_data, dim in (
            (64, 8192, 50_000, 32), (64, 8192, 50_000, 128), (64, 8192, 50_000, 256), (256, 8192, 20_000, 128),
            (16, 16384, 50_000, 128), (8, 16384, 50_000, 256), (256, 4096, 20_000, 32),
        ):  # fmt: skip
            case = Case(batch, k, num_data, dim)
            t = interleaved({plan: Ours(case, plan, copy=False).step}, repeats, clock)[plan]["p50"]
            scores = batch * (k if plan == "gather" else num_data)
            lines.append([scores, scores * dim, num_data * dim])
            times.append(t * 1e6 / 2)
        a, b = torch.tensor(lines, dtype=torch.float64), torch.tensor(times, dtype=torch.float64)
        cost = torch.linalg.lstsq(a / b[:, None], torch.ones_like(b)[:, None]).solution[:, 0]
        off = ((a @ cost) / b).log().abs().max()
        print(f"  {plan}: Cost({', '.join(f'{c:.3g}' for c in cost.tolist())}), off by at most {math.exp(off):.2f}x")
        rows.append({"fit": plan, "cost": cost.tolist(), "off": math.exp(off)})
    return rows


def main(arguments: list[str]) -> int:
    p = parser("bank", __doc__, f"the shape {QUICK} without torch.compile")
    add_shapes(p, "B,K,N", SHAPES)
    p.add_argument("--sweep", action="store_true", help="cost against K, N and B instead of the shapes")
    p.add_argument("--fit", action="store_true", help="the cost model's constants instead of the shapes")
    p.add_argument("--simd", choices=("portable", "avx2", "avx512"), help="instruction set (default: the best)")
    a = parsed(p, arguments)
    if a.simd and not native_module.module().set_simd(a.simd):
        p.error(f"--simd {a.simd}: this CPU or build lacks it")
    fine = True
    if a.sweep or a.fit:
        rows = sweep(a.repeats, a.clock) if a.sweep else fit(a.repeats, a.clock)
    else:
        rows, fine = run(quick_contests() if a.quick else (contest(s, a.dim) for s in a.shapes), a.repeats, a.clock)
    keep("bank", [{"formula_mb": formula(r), **r} for r in rows], a)
    return 0 if fine else 1


def formula(row: dict[str, Any]) -> float | None:
    """MB that the README's formula gives for a gather step."""
    if row.get("form") != "gather":
        return None
    sizes = (row["batch"], row["num_data"], row["k"], row.get("dim", 128))
    return round(native_cpu.gather_bytes(*sizes, threads=torch.get_num_threads()) / 2**20, 2)
