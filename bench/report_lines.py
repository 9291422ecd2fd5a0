"""Sentences and small tables of the pages that state a measured number, made from the rows that show it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from bench.report_tables import Row, clock, latest, runs_of, short, solves, table, where

OURS, ALONE = "ours, native", "ours, native, no autograd"
TIE = 0.95  # another form counts as at least as fast from this fraction of our time on


def paragraph(text: str) -> str:
    indent = "  " if text.startswith("- ") else ""  # of a list
    lines = textwrap.wrap(text, 120, subsequent_indent=indent, break_on_hyphens=False)
    return "\n".join(lines) + "\n"


def collapse(rows: list[Row]) -> str:
    """The outcome of the last run of `bench.collapse`, as a sentence."""
    r = rows[-1]
    verdict = "It has collapsed" if r["collapsed"] else "It has not collapsed"
    return paragraph(
        f"- **{verdict}** where we looked: a {r['student_model']} student of a {r['teacher_model']} teacher on "
        f"{r['images']:,} CIFAR-100 images, {r['epoch']} epochs with the rate decay, ends with a mean embedding "
        f"of norm {r['mean_norm']:.2f}, effective rank {r['effective_rank']:.1f} and positives {r['gap']:.2f} above "
        "negatives in cosine (`bench/results/collapse.jsonl`). Accuracies of such short runs mean nothing."
    )


def last_runs(rows: list[Row]) -> Iterable[tuple[tuple, dict[str, Row]]]:
    """(solver, eps, n) and the rows by provider of the last whole run of each case."""
    by_case: dict[tuple, dict[str, Row]] = {}
    for (*case, _), run in runs_of(rows, "solver", "eps", "n").items():
        if OURS in run:
            by_case[tuple(case)] = run
    return sorted(by_case.items(), key=lambda item: (item[0][0] == "ipot", -item[0][1], item[0][2]))


def ot_lost(rows: list[Row]) -> str:
    """The cases in which another provider is at most 5 % slower than ours, and the part of our time that autograd
    takes."""
    words = []
    for (solver, eps, n), run in last_runs(rows):
        for kind, name in (("forward", "forward"), ("both", "forward + gradient")):
            others = [r for p, r in run.items() if not p.startswith("ours") and solves(r)]
            best = min(others, key=lambda r: r[f"{kind}_p50"], default=None)
            mine = run[OURS][f"{kind}_p50"]
            if best is None or best[f"{kind}_p50"] * TIE > mine:
                continue
            text = (
                f"{solver} {eps:g}, n = {n}, {name}: {best['provider'].split(',')[0]} {short(best[f'{kind}_p50'])} ms"
            )
            text += f", ours {short(mine)}"
            if ALONE in run:
                text += f", of which the op itself {short(run[ALONE][f'{kind}_p50'])} and PyTorch's autograd the rest"
            words.append(text)
    if not words:
        return paragraph("Ours is the fastest of all that was run, in every line.")
    return paragraph("Where we do not win: " + "; ".join(words) + ".")


def autograd_table(rows: list[Row]) -> str:
    """Forward + gradient as a multiple of the forward, through PyTorch's autograd and of the op alone."""
    lines = []
    for (solver, eps, n), run in last_runs(rows):
        if solver == "sinkhorn" and eps == 0.05 and ALONE in run:
            ratios = [run[name]["both_p50"] / run[name]["forward_p50"] for name in (OURS, ALONE)]
            lines.append([str(n), *(f"{ratio:.1f}" for ratio in ratios)])
    return table(["n = m", "forward + gradient over forward", "of the op alone"], lines)


def critic_table(rows: list[Row]) -> str:
    """Draws, scores, losses and gradients without the update; a line per shape."""
    by_shape: dict[tuple, dict[str, Row]] = {}
    for (*shape, form), row in latest(rows, "batch", "k", "num_data", "dim", "form").items():
        by_shape.setdefault(tuple(shape), {})[form] = row
    names = {"naive": "naive CRD, ms", "plain": "best plain PyTorch", "compile": "torch.compile of it"}
    names |= {"gather": "ours, gather", "dense": "ours, dense"}
    lines = []
    for (batch, k, num_data, _), forms in sorted(by_shape.items()):
        ours = min((forms[p] for p in ("gather", "dense")), key=lambda r: r["ms"]["p50"])
        cells = [milliseconds(forms[f]) for f in names]
        ratios = [f"{ours[key]:.1f}x" if key in ours else "-" for key in ("times_naive", "times_plain")]
        lines.append([f"{batch}, {k:,}, {num_data:,}", *cells, *ratios, f"{ours['percent_of_floor']:.0f} %"])
    head = ["B, K, N (D = 128)", *names.values(), "x naive", "x plain", "of the floor"]
    text = "Floor: the scores' and gradients' arithmetic at the speed of PyTorch's matrix product in the same process."
    return table(head, lines) + f"\n{text} {clock(rows)}; {where(rows)}. `python -m bench critic`.\n"


def bank_critics_table(rows: list[Row]) -> str:
    """InfoNCE and the sigmoid beside CRD's NCE, by plan: times, and as a multiple of NCE's time; a line per shape."""
    by_shape: dict[tuple, dict[str, Row]] = {}
    for (*shape, form), row in latest(rows, "batch", "k", "num_data", "dim", "form").items():
        by_shape.setdefault(tuple(shape), {})[form] = row
    lines = []
    for (batch, k, num_data, _), forms in sorted(by_shape.items()):
        for plan in ("gather", "dense"):
            cells = [milliseconds(forms[f"nce, {plan}"])]
            for critic in ("infonce", "sigmoid"):
                ours = forms[f"{critic}, {plan}"]
                cells += [f"{milliseconds(ours)} ({ours['of_nce']:.2f})", milliseconds(forms[f"{critic}, plain"])]
            lines.append([f"{batch}, {k:,}, {num_data:,}; {plan}", *cells])
    head = [
        "B, K, N (D = 128); plan",
        "NCE, ms",
        "InfoNCE (of NCE)",
        "plain PyTorch",
        "sigmoid (of NCE)",
        "plain PyTorch",
    ]
    return table(head, lines) + f"\n{clock(rows)}; {where(rows)}. `python -m bench bank_critics`.\n"


def update_table(rows: list[Row]) -> str:
    """Microseconds of one update; a line per shape and number of repeated indices."""
    names = {"naive": "index_copy_, us", "plain": "plain PyTorch, last wins", "compile": "torch.compile of it"}
    names["native"] = "ours, checks included"
    by_shape: dict[tuple, dict[str, Row]] = {}
    for (*shape, form), row in latest(rows, "batch", "num_data", "repeated", "form").items():
        by_shape.setdefault(tuple(shape), {})[form] = row
    lines = [
        [f"{batch}, {repeated}", *(milliseconds(forms[f], 1e3 / forms[f].get("calls", 1)) for f in names)]
        for (batch, _, repeated), forms in sorted(by_shape.items())
    ]
    sizes = f"N = {rows[-1]['num_data']:,}, D = {rows[-1]['dim']}"
    text = f"{sizes}; {clock(rows)}; {where(rows)}. `python -m bench update`."
    return table(["B, of them repeated", *names.values()], lines) + f"\n{text}\n"


def given_cost_table(rows: list[Row]) -> str:
    """A line per kind, number of problems, classes and eps. Rows without a kind are those of a shared cost."""
    names = {"shared": "", "own": ", a cost each", "unbalanced": ", relaxed"}
    rows = [row | {"kind": names[row.get("kind", "shared")]} for row in rows if not row["provider"].startswith("POT")]
    lines = _beside_plain(rows, ("problems", "classes", "eps", "kind"), "{:,} x {:,}, eps {:g}{}", loss=True)
    text = f"10 iterations, forward and gradient in C, ms; {_measured(rows)}. `python -m bench ot_matrix`."
    return (
        table(
            [
                "problems x classes",
                "ours",
                "plain PyTorch",
                "ours / plain",
                "ours / plain, autograd",
                "gradient's error",
            ],
            lines,
        )
        + f"\n{text}\n"
    )


def project_table(rows: list[Row]) -> str:
    """A line per number and size of the matrices."""
    lines = _beside_plain(rows, ("problems", "n"), "{0:,} of {1} x {1}")
    text = f"{rows[-1]['iters']} iterations, forward and gradient, ms; {_measured(rows)}. `python -m bench project`."
    return table(["matrices", "ours", "plain PyTorch", "ours / plain", "gradient's error"], lines) + f"\n{text}\n"


def _measured(rows: list[Row]) -> str:
    return f"{clock(rows)}; the error is that against float64; {where(rows)}"


def _beside_plain(rows: list[Row], keys: tuple[str, ...], case: str, loss: bool = False) -> list[list[str]]:
    """The last run of every case, ours beside plain PyTorch, and with `loss` beside its form with autograd."""
    cases: dict[tuple, dict[str, Row]] = {}
    for (*case_keys, provider), row in latest(rows, *keys, "provider").items():
        form = "ours" if provider == OURS else "loss" if provider.endswith("autograd") else "plain"
        cases.setdefault(tuple(case_keys), {})[form] = row
    lines = []
    for key, forms in cases.items():
        ours, plain = forms["ours"], forms["plain"]
        lines.append(
            [
                case.format(*key),
                f"**{short(ours['p50'])}**",
                short(plain["p50"]) + ("" if plain["gradient_error"] is not None else " (NaN)"),
                f"{ours['p50'] / plain['p50']:.2f}",
                *([f"{ours['p50'] / forms['loss']['p50']:.2f}" if "loss" in forms else "-"] if loss else []),
                f"{ours['gradient_error']:.0e}",
            ]
        )
    return lines


def milliseconds(row: Row, scale: float = 1.0) -> str:
    """A form's time, marked if its result is wrong; or "fails"."""
    if "failed" in row:
        return "fails"
    return short(scale * row["ms"]["p50"]) + ("" if row["right"] else " (wrong)")


def host_table(rows: list[Row]) -> str:
    """Milliseconds of one step, naive and ours, and their ratio."""
    result = latest([r for r in rows if "failed" not in r], "case", "batch", "k", "num_data", "n", "form")
    sizes = dict.fromkeys(key[:-1] for key in result)
    lines = []
    for size in sizes:
        naive, ours = (result[*size, form] for form in ("naive", "ours"))
        case, batch, k, num_data, n = size
        shape = f"n = {n}" if batch is None else f"B {batch}, K {k:,}, N {num_data:,}"
        a, b = (row["ms"]["p50"] / row["calls"] for row in (naive, ours))
        lines.append([f"{case}, {shape}", f"{a:.2f}", f"{b:.2f}", f"{b / a:.2f}"])
    text = f"{where(result.values())}; processor time, ms. `python -m bench host`."
    return table(["step", "naive", "ours", "ours / naive"], lines) + f"\n{text}\n"
