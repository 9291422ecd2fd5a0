"""The curve of a sweep: ours on the left, the paper's on the right, each with its own scale."""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from pathlib import Path

from ..train import files


def plot(
    path: Path, weight: str, measure: str, student: str, curve: Sequence[tuple[float, list[float], tuple[float, ...]]]
) -> None:
    """Write a PNG of percent over a loss weight.

    Args:
        path: the file to write.
        weight, measure: names of the axes.
        student: the network, for the title.
        curve: (weight, our values by seed, the paper's mean and, if given, standard deviation).
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    ours = [(w, statistics.fmean(v), statistics.stdev(v) if len(v) > 1 else 0.0) for w, v, _ in curve if v]
    theirs = [(w, p[0], p[1] if len(p) > 1 else 0.0) for w, _, p in curve if p]
    for axes, points, title in ((left, ours, f"ours, {student}"), (right, theirs, "the paper's, on its own data")):
        if points:
            x, y, spread = zip(*points, strict=True)
            bars = {"yerr": spread, "capsize": 3} if any(spread) else {}
            axes.errorbar(x, y, marker="o", markersize=4, **bars)  # type: ignore[arg-type]
        axes.set_title(title, loc="left")
        axes.set_xlabel(weight)
        axes.set_ylabel(measure)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    with files.replacing(path) as file:
        figure.savefig(image := io.BytesIO(), dpi=130, format="png")
        file.write(image.getvalue())
    plt.close(figure)
