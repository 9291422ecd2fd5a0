"""The bank: one CRD step (both directions, loss, gradients, update) against the naive form and plain PyTorch.

    python -m bench bank [--shapes 64,16384,50000 ...] [--threads 1] [--quick] [--sweep] [--fit]

One process, interleaved, medians. A ratio is printed only for a form that equals float64 in this very run.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch

from bench.bank_providers import Case, Naive, Ours, Plain
from bench.measure import interleaved, peak_megabytes
from bench.results_file import RESULTS, append
from wcord_fast.ops import native_module
from wcord_fast.ops.bank import native_cpu

SHAPES = (
    (64, 16384, 50_000),
    (64, 4096, 50_000),
    (256, 16384, 50_000),
    (1024, 65536, 1_281_167),
    (1024, 4096, 1_281_167),
)
LARGE = 1 << 24  # draws above which the baselines do not fit or take minutes
CHECKED = 8  # anchors compared with float64
LIMITS = {
    "loss": 1e-6,
    "grad": 1e-5,
}  # relative; the baselines, which lose bits by design, may lose this many times more
SLACK = {"naive": 1000, "plain": 10}


def providers(case: Case) -> dict[str, Any]:
    """The forms to compare; the large shapes have room for ours alone."""
    if case.batch * case.k >= LARGE or case.num_data > 10**6:
        return {"gather": Ours(case, "gather", copy=False)}
    ours = {plan: Ours(case, plan) for plan in ("gather", "dense")}
    return {"naive": Naive(case), "plain": Plain(case), **ours}


def errors(provider, expected) -> dict[str, float]:
    """Largest relative errors of the first anchors' losses and gradients; takes a step."""
    loss, grad = (t[:, :CHECKED].double() for t in provider.step())
    return {
        "loss": float(((loss - expected[0]) / expected[0]).abs().max()),
        "grad": float(((grad - expected[1]).norm(dim=2) / expected[1].norm(dim=2)).max()),
    }


def measure(shape: tuple[int, int, int], repeats: int, dim: int = 128) -> list[dict[str, Any]]:
    """One row per form of a step at (B, K, N)."""
    case = Case(*shape, dim)
    expected = case.answers(min(CHECKED, case.batch))
    forms = providers(case)
    error = {name: errors(form, expected) for name, form in forms.items()}
    right = {name: all(e[part] <= LIMITS[part] * SLACK.get(name, 1) for part in LIMITS) for name, e in error.items()}
    memory = {name: peak_megabytes(form.step) for name, form in forms.items()}
    times = interleaved({name: form.step for name, form in forms.items()}, repeats)
    rows = []
    for name, t in times.items():
        row = {"batch": case.batch, "k": case.k, "num_data": case.num_data, "dim": case.dim, "form": name, "ms": t}
        row |= {"error": error[name], "right": right[name], "peak_mb": memory[name], "simd": simd()}
        row["ns_per_score"] = round(t["p50"] * 1e6 / (2 * case.batch * case.k), 2)
        for base in ("naive", "plain"):
            if base in times and base != name and right[name] and right[base]:
                row[f"times_{base}"] = round(times[base]["p50"] / t["p50"], 2)
        rows.append(row)
    return rows


def simd() -> str:
    return native_module.module().simd()


def show(rows: list[dict[str, Any]]) -> None:
    for r in rows:
        ratios = " ".join(f"{r[k]:7.1f}x {k[6:]}" for k in ("times_naive", "times_plain") if k in r)
        t, e, shape = r["ms"], r["error"], (r["batch"], r["k"], r["num_data"])
        print(
            f"{shape} {r['form']:7} {t['p50']:9.2f} ms ({t['p20']:.2f}-{t['p80']:.2f}) "
            f"{r['ns_per_score']:7.2f} ns/score {r['peak_mb']:8.1f} MB  error {e['loss']:.1e} {e['grad']:.1e} "
            f"{'' if r['right'] else 'WRONG '}{ratios}",
            flush=True,
        )


def sweep(repeats: int) -> list[dict[str, Any]]:
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
            for plan, t in interleaved(calls, repeats).items():
                rows.append({"sweep": name, **sizes, "form": plan, "ms": t})
            shown = "  ".join(f"{r['form']} {r['ms']['p50']:8.2f} ms" for r in rows[-2:])
            print(f"{name} = {value:7}: {shown}", flush=True)
    return rows


def fit(repeats: int) -> list[dict[str, Any]]:
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
            t = interleaved({plan: Ours(case, plan, copy=False).step}, repeats)[plan]["p50"]
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
    p = argparse.ArgumentParser(
        prog="python -m bench bank", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--shapes", nargs="+", help="B,K,N each", default=[",".join(map(str, s)) for s in SHAPES])
    p.add_argument("--dim", type=int, default=128)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--repeats", type=int, default=7)
    p.add_argument("--quick", action="store_true", help="the first shape only, 3 repeats, nothing written")
    p.add_argument("--sweep", action="store_true", help="cost against K, N and B instead of the shapes")
    p.add_argument("--fit", action="store_true", help="the cost model's constants instead of the shapes")
    p.add_argument("--simd", choices=("portable", "avx2", "avx512"), help="instruction set (default: the best)")
    p.add_argument("--out", type=Path, default=RESULTS, help="folder of bank.jsonl")
    a = p.parse_args(arguments)
    torch.set_num_threads(a.threads)
    if a.simd and not native_module.module().set_simd(a.simd):
        p.error(f"--simd {a.simd}: this CPU or build lacks it")
    repeats, shapes = (3, a.shapes[:1]) if a.quick else (a.repeats, a.shapes)
    if a.sweep or a.fit:
        rows = sweep(repeats) if a.sweep else fit(repeats)
    else:
        rows = []
        for shape in shapes:
            batch, k, num_data = (int(x) for x in shape.split(","))
            part = measure((batch, k, num_data), repeats, a.dim)
            show(part)
            rows += part
    rows = [{"subject": "bank", "device_kind": "cpu", "formula_mb": formula(r), **r} for r in rows]
    if not a.quick:
        print("written to", append("bank", rows, a.out))
    return 0 if all(r.get("right", True) or r["form"] in SLACK for r in rows) else 1


def formula(row: dict[str, Any]) -> float | None:
    """MB that the README's formula gives for a gather step."""
    if row.get("form") != "gather":
        return None
    sizes = (row["batch"], row["num_data"], row["k"], row.get("dim", 128))
    return round(native_cpu.gather_bytes(*sizes, threads=torch.get_num_threads()) / 2**20, 2)
