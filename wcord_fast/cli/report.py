"""The end of `wcord-fast distill`: a table (screen, Markdown, CSV) and a plot of accuracy per epoch."""

from __future__ import annotations

import io
import math
import statistics
from pathlib import Path

from ..train import files
from ..train.estimates import LEAST_SEEDS, Estimate, difference_text, estimate, mean_text, paired
from ..train.loggers import write_csv
from ..train.tables import Line, markdown_table
from .workbench import Result

PLAIN = "ce"
Students = dict[str, dict[int, Result]]  # method -> seed -> the trained student


def lines_of(students: Students, teacher: Result) -> list[Line]:
    """One line of text cells per method (means over its seeds), and the teacher's line."""
    rows = [(name, list(by_seed.values())) for name, by_seed in students.items()]
    several = any(len(results) > 1 for _, results in rows)
    lines = []
    for name, results in [*rows, (teacher.name, [teacher])]:
        line = {
            "method": name,
            "network": results[0].architecture,
            "last %": mean_text(estimate([_last(r) for r in results])),
            "best %": f"{statistics.fmean(r.history[-1]['best_top1'] for r in results):.2f}",
        }
        if several and PLAIN in students:
            line["minus ce"] = "-" if name in (PLAIN, teacher.name) else difference_text(_minus(students, name, PLAIN))
        lines.append(
            line
            | {
                "parameters": f"{results[0].parameters:,}",
                "epochs": str(results[0].history[-1]["epoch"] or "-"),
                "images/s": _median(results, "images_per_s", "{:,.0f}"),
                "loss share": _median(results, "loss_share", "{:.1%}"),
            }
        )
    return lines


def notes(students: Students, test_images: int, batch_size: int) -> str:
    """Notes below the table: how to read it, and the differences between the methods."""
    seeds = len(next(iter(students.values())))
    accuracy = statistics.fmean(_last(r) for r in next(iter(students.values())).values()) / 100
    error = 100 * math.sqrt(accuracy * (1 - accuracy) / test_images)
    message = (
        f"The test split has {test_images:,} images: one image is {100 / test_images:.2f} points, and the sampling "
        f"error of an accuracy here is about {error:.2f} points. "
    )
    if seeds == 1:
        message += "This is one seed."
    else:
        message += (
            f"Accuracies are means over {seeds} seeds, with 95 % intervals (Student's t) from {LEAST_SEEDS} seeds on. "
            "Differences are between runs of equal seed, which begin with the same weights and see the same images; "
            "where the interval holds zero they are not separated."
        )
    for reference in (PLAIN, "kd"):
        for name in students if reference in students else ():
            if name in (PLAIN, reference):
                continue
            difference = _minus(students, name, reference)
            text = difference_text(difference) if seeds > 1 else _in_images(difference, test_images)
            message += f" {name} - {reference}: {text}."
    return message + (
        " last is the accuracy after the last epoch (what papers report), best that of the best epoch. images/s is "
        f"training only, {batch_size} images a step, teacher's forward included; loss share is the part of the step "
        "spent in the distillation loss: forward, backward and bank update."
    )


def left_out(skipped: int) -> str:
    """A sentence on the image files that were left out; empty if there are none."""
    return f" {skipped:,} image files could not be read and are left out." if skipped else ""


def write_table(directory: Path, name: str, text: str, lines: list[Line], notes: str) -> list[str]:
    """Write NAME.txt (`text`), NAME.md (the table and `notes`) and NAME.csv (the table); return the file names."""
    files.make_directory(directory)
    names = [f"{name}.{suffix}" for suffix in ("txt", "md", "csv")]
    for file_name, content in zip(names, (text, f"{markdown_table(lines)}\n\n{notes}\n"), strict=False):
        with files.replacing(directory / file_name) as file:
            file.write(content.encode())
    write_csv(directory / names[2], [dict(line) for line in lines])
    return names


def write(directory: Path, students: Students, teacher: Result, lines: list[Line], notes: str) -> list[Path]:
    """Write results.md, results.csv and accuracy.png to `directory`; return their paths."""
    files.make_directory(directory)
    markdown, table, plot = (directory / name for name in ("results.md", "results.csv", "accuracy.png"))
    with files.replacing(markdown) as file:
        file.write(f"{markdown_table(lines)}\n\n{notes}\n".encode())
    write_csv(table, [dict(line) for line in lines])
    accuracy_plot(plot, students, teacher)
    return [markdown, table, plot]


def accuracy_plot(path: Path, students: Students, teacher: Result) -> None:
    """Test accuracy per epoch of every method, and the teacher's last accuracy as a dashed line.

    With several seeds the line is the mean, and a band reaches from the lowest to the highest accuracy.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, axes = plt.subplots(figsize=(7, 4.3), layout="constrained")
    for name, by_seed in students.items():
        results = list(by_seed.values())
        epochs = [row["epoch"] for row in results[0].history]
        curves = list(zip(*([row["test_top1"] for row in r.history] for r in results), strict=False))
        mean = [statistics.fmean(values) for values in curves]
        (line,) = axes.plot(epochs[: len(mean)], mean, marker="o", markersize=3, label=f"{name}: {mean[-1]:.2f} %")
        if len(results) > 1:
            low, high = [min(v) for v in curves], [max(v) for v in curves]
            axes.fill_between(epochs[: len(mean)], low, high, color=line.get_color(), alpha=0.12, linewidth=0)
    last = _last(teacher)
    label = f"teacher {teacher.architecture}: {last:.2f} %"
    axes.axhline(last, color="0.4", linestyle="--", linewidth=1.2, label=label)
    axes.set_xlabel("epoch")
    axes.set_ylabel("test accuracy, top-1 %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    first = next(iter(students.values()))
    seeds = f", {len(first)} seeds" if len(first) > 1 else ""
    axes.set_title(f"{next(iter(first.values())).architecture}: accuracy per epoch{seeds}", loc="left")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    with files.replacing(path) as file:
        figure.savefig(image := io.BytesIO(), dpi=130, format="png")
        file.write(image.getvalue())
    plt.close(figure)


def _last(result: Result) -> float:
    """Test accuracy after the last epoch."""
    return result.history[-1]["test_top1"]


def _minus(students: Students, name: str, reference: str) -> Estimate | None:
    ours, others = ({seed: _last(r) for seed, r in students[key].items()} for key in (name, reference))
    return paired(ours, others)


def _in_images(difference: Estimate | None, test_images: int) -> str:
    points = difference.mean if difference else math.nan
    return f"{points:+.2f} points ({round(points * test_images / 100):+d} images)"


def _median(results: list[Result], column: str, form: str) -> str:
    """The median over all epochs, which a slow first epoch does not change; "-" where nothing was measured."""
    values = sorted(row[column] for result in results for row in result.history if column in row)
    return form.format(values[len(values) // 2]) if values else "-"
