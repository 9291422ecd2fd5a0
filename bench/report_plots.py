"""The plots of bench/results."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bench.report_accuracy import accuracies, newest, setting, title
from bench.report_tables import Row, latest, solves
from bench.results_file import read


def log_axes(axis: Any, values: Iterable[int]) -> None:
    """Both axes logarithmic, with a tick at each of `values` along x, and plain numbers."""
    from matplotlib.ticker import NullFormatter, NullLocator, ScalarFormatter

    axis.set(xscale="log", yscale="log")
    some = sorted(set(values))
    axis.set_xticks(some, labels=[f"{v:,}" for v in some], fontsize=7, rotation=30)
    axis.xaxis.set_minor_locator(NullLocator())
    low, high = axis.get_ylim()
    axis.yaxis.set_major_formatter(ScalarFormatter())
    axis.yaxis.set_minor_formatter(ScalarFormatter() if high < 50 * low else NullFormatter())
    axis.tick_params(axis="y", which="both", labelsize=7)


def plot_bank(rows: list[Row], axes: Any) -> None:
    """A step against K, N and B: time (gather is linear in B K, dense flat in K), memory, share of the floor."""
    names = {"k": "K, negatives of an anchor", "num_data": "N, rows of a bank", "batch": "B, anchors"}
    text = {"k": "K", "num_data": "N", "batch": "B"}
    for column, (name, label) in zip(axes.T, names.items(), strict=True):
        swept = list(latest([r for r in rows if r.get("sweep") == name], name, "form").values())
        fixed = {other: swept[0][other] for other in names if other != name}
        column[0].set_title(", ".join(f"{text[key]} = {value:,}" for key, value in fixed.items()), fontsize=10)
        for axis, (y_label, value) in zip(column, BANK.items(), strict=True):
            for form in ("gather", "dense"):
                points = sorted((r[name], value(r)) for r in swept if r["form"] == form and value(r) is not None)
                if points:
                    axis.plot(*zip(*points, strict=True), marker="o", label=form)
            axis.set(xlabel=label, ylabel=y_label)
            log_axes(axis, (r[name] for r in swept))
            if "floor" in y_label:
                axis.set(yscale="linear", ylim=(0, 100))
            if axis.lines:
                axis.legend()


BANK: dict[str, Callable[[Row], float | None]] = {
    "ms a step": lambda r: r["ms"]["p50"],
    "MB, rise of resident memory": lambda r: r.get("peak_mb"),
    "floor, % of the time": lambda r: r.get("percent_of_floor"),
}


def plot_ot(rows: list[Row], axes: Any) -> None:
    """Forward + gradient against n, every provider: time and memory."""
    others = [p for p in dict.fromkeys(r["provider"] for r in rows) if p != "ours, native"]
    colors = {p: f"C{i}" if i < 10 else ["navy", "gold", "lime"][i % 3] for i, p in enumerate(others)}
    for column, (solver, eps) in zip(axes.T, (("sinkhorn", 0.05), ("sinkhorn", 1e-3), ("ipot", 0.5)), strict=True):
        result = latest([r for r in rows if (r["solver"], r["eps"]) == (solver, eps)], "provider", "n")
        column[0].set_title(f"{solver}, eps {eps:g}")
        for axis, (y_label, key) in zip(column, OT.items(), strict=True):
            for provider in dict.fromkeys(name for name, _ in result):
                points = sorted((n, r[key]) for (name, n), r in result.items() if name == provider and solves(r))
                if points:
                    style = {"lw": 1, "color": colors[provider]} if provider in colors else {"lw": 3, "color": "k"}
                    axis.plot(*zip(*points, strict=True), marker="o", label=provider, **style)
            axis.set(xlabel="n = m", ylabel=y_label)
            log_axes(axis, (n for _, n in result))
        if column[0].lines:
            column[0].legend(fontsize=6)


OT = {"ms, value and gradient": "both_p50", "MB, rise of resident memory": "peak_mb"}


def plot_accuracy(rows: list[Row], axis: Any) -> None:
    """Test accuracy of every variant, the best on top: a dot for each seed, and the mean with its interval."""
    runs = newest(rows)
    order = sorted(runs, key=lambda variant: accuracies(runs[variant]).mean)
    for y, variant in enumerate(order):
        mean, interval, _ = accuracies(runs[variant])
        values = [row["accuracy"] for row in runs[variant].values()]
        axis.plot(values, [y] * len(values), "o", color="C0", alpha=0.5, markersize=4)
        if interval is not None:
            reach = [[mean - interval[0]], [interval[1] - mean]]
            axis.errorbar(mean, y, xerr=reach, fmt="s", color="k", capsize=4, markersize=5)
    axis.set_yticks(range(len(order)), labels=[title(runs, variant) for variant in order], fontsize=8)
    axis.set(xlabel="test accuracy, %; dots: seeds, bars: 95 % interval of the mean, from three seeds on")
    axis.set_title(setting(runs), fontsize=9)


def plots(folder: Path) -> list[Path]:
    """Draw `bank.svg`, `ot.svg` and `pairs/accuracy.svg` beside the rows they show."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    written = []
    drawn: dict[str, tuple[Callable[[list[Row], Any], None], int, int]] = {  # rows and columns of axes
        "bank": (plot_bank, len(BANK), 3),
        "ot": (plot_ot, len(OT), 3),
        "pairs/accuracy": (plot_accuracy, 1, 1),
    }
    for name, (draw, high, wide) in drawn.items():
        rows = read(name, folder)
        if not rows:
            continue
        with plt.rc_context({"svg.hashsalt": name, "axes.grid": True, "grid.alpha": 0.3}):
            size = (14, 3.6 * high) if wide > 1 else (9, 4.5)
            figure, axes = plt.subplots(high, wide, figsize=size, layout="constrained")
            draw(rows, axes)
            written.append(folder / f"{name}.svg")
            figure.savefig(written[-1], metadata={"Date": None})
            plt.close(figure)
    return written
