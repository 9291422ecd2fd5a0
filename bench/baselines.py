"""The baselines' waste: nst, rkd, sp, pkt and cc as the public code computes them, and as this library does.

    python -m bench baselines [--methods nst,rkd] [--batches 64 256] [--threads 1] [--quick]

A step is the loss's value and gradients from given features of resnet32x4 and resnet8x4 on 32x32 images. One process,
interleaved, medians. A ratio is printed only for a form that equals float64 in this very run: its relative error is at
most 1e-5 (gradient: 1e-4), or twice (three times) that of the public form in the same precision.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from bench.baseline_providers import NAIVE, Case, Naive, Ours
from bench.measure import CLOCKS, interleaved, peak_megabytes
from bench.results_file import RESULTS, append

FACTOR = {"value": 2, "grad": 3}  # how far above the public form's error ours may be
TINY = {"value": 1e-5, "grad": 1e-4}  # and what both may have
CANCELS = {"pkt": 10}  # its terms have both signs and in all some 40 times the value, and so has their rounding
SANE = 1e-2  # the public form itself
LARGEST = {"nst": 64}  # batch above which the public form takes gigabytes


def errors(form, expected) -> dict[str, float]:
    """Relative errors of the value and of the gradients' norm."""
    value, grads = form.step()
    off = sum(float((g.double() - e).square().sum()) for g, e in zip(grads, expected[1], strict=True))
    size = sum(float(e.square().sum()) for e in expected[1])
    return {"value": float(((value.double() - expected[0]) / expected[0]).abs()), "grad": (off / size) ** 0.5}


def measure(
    name: str, batch: int, repeats: int, student: str, teacher: str, clock: str = "wall"
) -> list[dict[str, Any]]:
    """One row per form."""
    case = Case(name, batch, student, teacher)
    expected = case.answer()
    forms = {"naive": Naive(case), "ours": Ours(case)}
    error = {form: errors(forms[form], expected) for form in forms}
    right = {
        "naive": all(e <= SANE for e in error["naive"].values()),
        "ours": all(
            e <= max(FACTOR[part] * error["naive"][part], TINY[part] * CANCELS.get(name, 1))
            for part, e in error["ours"].items()
        ),
    }
    memory = {form: peak_megabytes(forms[form].step) for form in forms}
    times = interleaved({form: forms[form].step for form in forms}, repeats, clock)
    rows = []
    for form, t in times.items():
        row = {"method": name, "batch": batch, "student": student, "teacher": teacher, "form": form, "ms": t}
        row["clock"] = clock
        rows.append(row | {"error": error[form], "right": right[form], "peak_mb": memory[form]})
    if all(right.values()):
        rows[-1]["times_naive"] = round(times["naive"]["p50"] / times["ours"]["p50"], 2)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    for r in rows:
        t, e = r["ms"], r["error"]
        ratio = f"{r['times_naive']:7.2f}x naive" if "times_naive" in r else ""
        print(
            f"{r['method']:4} batch {r['batch']:4} {r['form']:6} {t['p50']:9.2f} ms ({t['p20']:.2f}-{t['p80']:.2f}) "
            f"{r['peak_mb']:8.1f} MB  error {e['value']:.1e} {e['grad']:.1e} {'' if r['right'] else 'WRONG '}{ratio}",
            flush=True,
        )


def main(arguments: list[str]) -> int:
    p = argparse.ArgumentParser(
        prog="python -m bench baselines", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--methods", default=",".join(NAIVE), help="by comma")
    p.add_argument("--batches", type=int, nargs="+", default=[64, 256])
    p.add_argument("--student", default="resnet8x4")
    p.add_argument("--teacher", default="resnet32x4")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu, with one thread, on a machine with other work")
    p.add_argument("--repeats", type=int, default=7)
    p.add_argument("--quick", action="store_true", help="batches of 8, 3 repeats, nothing written")
    p.add_argument("--out", type=Path, default=RESULTS, help="folder of baselines.jsonl")
    a = p.parse_args(arguments)
    torch.set_num_threads(a.threads)
    methods = a.methods.split(",")
    if unknown := sorted(set(methods) - set(NAIVE)):
        p.error(f"--methods: expected some of {', '.join(NAIVE)}, got {', '.join(unknown)}")
    rows = []
    for name in methods:
        for batch in [8] if a.quick else a.batches:
            if batch <= LARGEST.get(name, batch):
                part = measure(name, batch, 3 if a.quick else a.repeats, a.student, a.teacher, a.clock)
                show(part)
                rows += part
    if not a.quick:
        print(
            "written to",
            append("baselines", [{"subject": "baselines", "device_kind": "cpu", **r} for r in rows], a.out),
        )
    return 0 if all(r["right"] for r in rows) else 1
