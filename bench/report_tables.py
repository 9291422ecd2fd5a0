"""Rows of result files as Markdown tables. If several rows measure one case, the last counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

Row = dict[str, Any]


def latest(rows: Iterable[Row], *keys: str) -> dict[tuple, Row]:
    """The last row for each value of `keys`."""
    return {tuple(row.get(key) for key in keys): row for row in rows}


def table(head: list[str], lines: Iterable[list[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *lines)) + "\n"


def short(value: float) -> str:
    """Three significant digits, thousands with a comma."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def where(rows: Iterable[Row]) -> str:
    """The machine and versions on which a table's numbers were measured."""
    some = list(rows)
    dates = sorted({r["date"][:10] for r in some})
    versions, threads = sorted({r["torch"] for r in some}), sorted({r["threads"] for r in some})
    sets = sorted({r["simd"] for r in some if "simd" in r})
    machine = ", ".join([some[0]["device"], *([" and ".join(sets)] if sets else [])])
    count = f"{', '.join(map(str, threads))} thread{'s' if threads != [1] else ''}"
    return f"{machine}, {count}, torch {', '.join(versions)}, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}"


def spread(values: Iterable[float], show: Callable[[float], str] = short) -> str:
    """The values' range, or their one value; "-" for none."""
    shown = list(dict.fromkeys(map(show, sorted(values))))
    return f"{shown[0]}-{shown[-1]}" if len(shown) > 1 else shown[0] if shown else "-"


BANK_NOTE = """\
A range is that of several runs, with AVX2 and with AVX-512; a ratio is of forms of one run. Ours is the faster of the
two plans in that run. "-": not measured. Floor: the step's arithmetic at the speed of PyTorch's matrix product in the
same process, or its bytes at that of a sum, whichever takes longer. Memory is of the last run.
"""


def bank_table(rows: list[Row]) -> str:
    """Times and ratios of all runs: a ratio to a form that waits for memory differs between machines and days."""
    kept = [r for r in rows if "sweep" not in r and "fit" not in r and r["device_kind"] == "cpu"]
    kept = [r for r in kept if r["simd"] != "portable"]
    runs: dict[tuple, dict[tuple, dict[str, Row]]] = {}  # shape -> run -> form
    for row in kept:
        shape = tuple(row[key] for key in ("batch", "k", "num_data", "dim"))
        run = runs.setdefault(shape, {}).setdefault((row["simd"], row["date"]), {})
        run[row["form"]] = row
    lines = []
    for (batch, k, num_data, _), by_run in sorted(runs.items()):
        forms = list(by_run.values())
        ours = [min((f[p] for p in ("gather", "dense") if p in f), key=lambda r: r["ms"]["p50"]) for f in forms]
        plan = " or ".join(dict.fromkeys(r["form"] for r in ours))
        plain = spread([f["plain"]["ms"]["p50"] for f in forms if "plain" in f])
        ratios = [
            spread([r[key] for r in ours if r.get(key)], "{:.1f}x".format) for key in ("times_plain", "times_naive")
        ]
        floor = spread([r["percent_of_floor"] for r in ours if r.get("percent_of_floor")], "{:.0f} %".format)
        naive_mb = spread([f["naive"]["peak_mb"] for f in forms[-1:] if "naive" in f])
        memory = f"{naive_mb} / {short(ours[-1]['peak_mb'])}"
        mine = f"**{spread([r['ms']['p50'] for r in ours])}** ({plan})"
        lines.append([f"{batch}, {k:,}, {num_data:,}", mine, plain, *ratios, floor, memory])
    head = ["B, K, N (D = 128)", "ours, ms", "best plain PyTorch, ms", "x plain", "x naive CRD", "of the floor"]
    text = f"{where(kept)}. `python -m bench bank`."
    return table([*head, "transient MB, naive / ours"], lines) + f"\n{text}\n{BANK_NOTE}"


def solves(row: Row) -> bool:
    """Whether a provider's value is right: scalings by exp(-C / eps) overflow at small eps."""
    return row["value_error"] < 0.01  # not NaN


def ot_table(rows: list[Row]) -> str:
    plain, ours = "exp once", "ours, native"
    by_case: dict[tuple, dict[str, Row]] = {}
    for (*case, _), run in runs_of(rows, "solver", "eps", "n", "dim", "iters").items():
        by_case[tuple(case)] = run  # whole, and the last: only what ran side by side is compared
    lines = []
    for (solver, eps, n, *_), result in sorted(
        by_case.items(), key=lambda item: (item[0][0] == "ipot", -item[0][1], item[0][2])
    ):
        if ours not in result:
            continue
        peers = [r for name, r in result.items() if name.startswith(("POT", "GeomLoss", "OTT")) and solves(r)]
        best = min(peers, key=lambda r: r["both_p50"], default=None)
        mine = result[ours]

        def pair(row: Row | None) -> str:
            if row and not solves(row):
                return "fails"
            return f"{short(row['forward_p50'])} / {short(row['both_p50'])}" if row else "-"

        first = result.get("naive, unrolled") or result.get("naive, envelope")
        once = next((r for name, r in result.items() if plain in name), None)
        peer = f"{pair(best)} ({best['provider'].split(',')[0]})" if best else "-"
        ratio = f"{first['forward_p50'] / mine['forward_p50']:.0f}x" if first else "-"
        memory = short(mine["peak_mb"])
        lines.append([f"{solver} {eps:g}, {n}", pair(first), pair(once), peer, f"**{pair(mine)}**", ratio, memory])
    head = ["solver eps, n = m", "naive loop", "exp once", "best peer here", "ours", "forward x naive", "our peak MB"]
    clock = "CPU time of one process in ms" if {r.get("clock") for r in rows} == {"cpu"} else "ms"
    text = f"{clock}, forward / forward + gradient, D = 128, 50 iterations"
    return table(head, lines) + f"\n{text}; {where(rows)}. `python -m bench ot`.\n"


def runs_of(rows: list[Row], *keys: str) -> dict[tuple, dict[str, Row]]:
    """Rows by `keys` and the time at which they were written together, oldest first; each by provider."""
    result: dict[tuple, dict[str, Row]] = {}
    for row in rows:
        result.setdefault((*(row[key] for key in keys), row["date"]), {})[row["provider"]] = row
    return result


def clock(rows: list[Row]) -> str:
    return "CPU time of one process" if all(r["clock"] == "cpu" for r in rows) else "wall-clock time"


def baselines_table(rows: list[Row]) -> str:
    cases = latest(rows, "method", "batch", "form")
    lines = []
    for name, batch in sorted({(name, batch) for name, batch, _ in cases}):
        naive, ours = cases[name, batch, "naive"], cases[name, batch, "ours"]
        times = f"{ours['times_naive']:.1f}x" if "times_naive" in ours else "-"
        memory = f"{short(naive['peak_mb'])} / {short(ours['peak_mb'])}"
        ms = [short(naive["ms"]["p50"]), f"**{short(ours['ms']['p50'])}**"]
        lines.append([f"{name}, {batch}", *ms, times, memory])
    head = ["method, batch", "public form, ms", "ours, ms", "x public form", "transient MB, public / ours"]
    return table(head, lines) + f"\n{clock(rows)}; {where(rows)}. `python -m bench baselines`.\n"


def step_table(rows: list[Row]) -> str:
    lines = []
    for (method, form), r in latest(rows, "method", "form").items():
        ratio = f"{r['times_eager']:.2f}x" if "times_eager" in r else "-"
        numbers = [short(r["ms"]["p50"]), short(r["images_per_s"]), ratio, short(r["loss_ms"])]
        lines.append([f"{method}, {form}", *numbers, f"{r['loss_share']:.1%}"])
    head = ["method, form", "step, ms", "images/s", "x eager", "loss, ms", "loss's share"]
    pair = f"{rows[-1]['teacher']} -> {rows[-1]['student']}, batch {rows[-1]['batch']}, {rows[-1]['num_data']:,} images"
    return table(head, lines) + f"\n{pair}; {clock(rows)}; {where(rows)}. `python -m bench step`.\n"


def sharded_table(rows: list[Row]) -> str:
    lines = []
    result = latest(rows, "rows", "negatives", "batch", "dtype", "processes")
    for (n, k, batch, dtype, world), row in sorted(result.items()):
        shape = f"{n:,}, {k:,}, {batch}, {dtype}"
        held = [f"{row['rows_each']:,}", f"{row['mb_each']:,.0f}"]
        times = [short(row["cpu_ms"]), short(row["step_ms"])]
        sent = [f"{row['bytes_sent']:,}", f"{row['bytes_arithmetic']:,}"]
        lines.append([shape, str(world), *held, *times, *sent, f"{row['error']:.0e}"])
    head = ["N, K, B, bank", "processes", "rows of a bank each", "MB of banks each", "step, CPU ms", "step, wall ms"]
    text = (
        f"CPU ms: processor time of the busiest process; wall ms: on {rows[-1]['cores']} cores that other work shared. "
        "Difference: of losses and gradient from one process, relative."
    )
    where_ = where(result.values())
    columns = [*head, "bytes sent", "by the formula", "difference"]
    return table(columns, lines) + f"\n{text} {where_}. `python -m bench sharded`.\n"
