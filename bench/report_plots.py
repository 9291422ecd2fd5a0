"""The plots of bench/results."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.report_tables import Row, latest, solves
from bench.results_file import read


def log_axes(axis: Any, values: Iterable[int]) -> None:
    """Both axes logarithmic, with a tick at each of `values` along x, and plain numbers."""
    from matplotlib.ticker import NullLocator, ScalarFormatter

    axis.set(xscale="log", yscale="log")
    some = sorted(set(values))
    axis.set_xticks(some, labels=[f"{v:,}" for v in some], fontsize=7, rotation=30)
    axis.xaxis.set_minor_locator(NullLocator())
    for which in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        which(ScalarFormatter())
    axis.tick_params(axis="y", which="both", labelsize=7)


def plot_bank(rows: list[Row], axes: Any) -> None:
    """Step time against K, N and B; gather is linear in B K, dense flat in K."""
    names = {"k": "K, negatives of an anchor", "num_data": "N, rows of a bank", "batch": "B, anchors"}
    for axis, (name, label) in zip(axes, names.items(), strict=True):
        swept = [r for r in rows if r.get("sweep") == name]
        for form in ("gather", "dense"):
            points = sorted(
                (r[name], r["ms"]["p50"]) for (r) in latest(swept, name, "form").values() if r["form"] == form
            )
            axis.plot(*zip(*points, strict=True), marker="o", label=form)
        fixed = {other: swept[0][other] for other in names if other != name}
        told = {"k": "K", "num_data": "N", "batch": "B"}
        axis.set(xlabel=label, ylabel="ms a step")
        log_axes(axis, (r[name] for r in swept))
        axis.set_title(", ".join(f"{told[key]} = {value:,}" for key, value in fixed.items()), fontsize=10)
        axis.legend()


def plot_ot(rows: list[Row], axes: Any) -> None:
    """Forward + gradient against n, every provider."""
    for axis, (solver, eps) in zip(axes, (("sinkhorn", 0.05), ("sinkhorn", 1e-3), ("ipot", 0.5)), strict=True):
        found = latest([r for r in rows if (r["solver"], r["eps"]) == (solver, eps)], "provider", "n")
        for provider in dict.fromkeys(name for name, _ in found):
            points = sorted((n, r["both_p50"]) for (name, n), r in found.items() if name == provider and solves(r))
            ours = provider == "ours, native"
            if not points:
                continue
            axis.plot(
                *zip(*points, strict=True), marker="o", label=provider, lw=3 if ours else 1, color="k" if ours else None
            )
        axis.set(xlabel="n = m", ylabel="ms, value and gradient", title=f"{solver}, eps {eps:g}")
        log_axes(axis, (n for _, n in found))
        if found:
            axis.legend(fontsize=6)


def plots(folder: Path) -> list[Path]:
    """Draw `bank.svg` and `ot.svg` beside the rows they show."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    written = []
    for name, draw in {"bank": plot_bank, "ot": plot_ot}.items():
        rows = read(name, folder)
        if not rows:
            continue
        with plt.rc_context({"svg.hashsalt": name, "axes.grid": True, "grid.alpha": 0.3}):
            figure, axes = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
            draw(rows, axes)
            written.append(folder / f"{name}.svg")
            figure.savefig(written[-1], metadata={"Date": None})
            plt.close(figure)
    return written
