"""The end of `wcord-fast distill`: a table (screen, Markdown, CSV) and a plot of accuracy per epoch."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path

from ..train import files
from ..train.loggers import write_csv
from ..train.tables import Line, markdown_table
from .workbench import Result


def lines_of(results: list[Result]) -> list[Line]:
    """One line of text cells per result."""
    return [
        {
            "method": result.name,
            "network": result.architecture,
            "last %": _cell(result, lambda r: f"{r['test_top1']:.2f}"),
            "best %": _cell(result, lambda r: f"{r['best_top1']:.2f}"),
            "parameters": f"{result.parameters:,}",
            "epochs": _cell(result, lambda r: str(r["epoch"] or "-")),
            "images/s": _median(result, "images_per_s", "{:,.0f}"),
            "loss share": _median(result, "loss_share", "{:.1%}"),
        }
        for result in results
    ]


def notes(results: list[Result], test_images: int, batch_size: int) -> str:
    """How to read the table, and how far the plain student and the others are apart."""
    last = {r.name: r.history[-1]["test_top1"] for r in results}
    share = last[results[0].name] / 100
    error = 100 * math.sqrt(share * (1 - share) / test_images)
    message = (
        f"The test split has {test_images:,} images: one image is {100 / test_images:.2f} points, and the sampling "
        f"error of an accuracy here is about {error:.2f} points. This is one seed."
    )
    for name, accuracy in last.items():
        if "ce" in last and name not in ("ce", "teacher"):
            images = round((accuracy - last["ce"]) * test_images / 100)
            message += f" {name} - ce: {accuracy - last['ce']:+.2f} points ({images:+d} images)."
    return message + (
        " last is the accuracy after the last epoch (what papers report), best that of the best epoch. images/s is "
        f"training only, {batch_size} images a step, teacher's forward included; loss share is the part of the step "
        "spent in the distillation loss: forward, backward and bank update."
    )


def left_out(skipped: int) -> str:
    """How many image files a data set is without, as a sentence to be added; nothing if none."""
    return f" {skipped:,} image files could not be read and are left out." if skipped else ""


def write_table(directory: Path, name: str, text: str, lines: list[Line], said: str) -> list[str]:
    """`text` as NAME.txt, the table and what is said of it as NAME.md, the table as NAME.csv; these three names."""
    files.make_directory(directory)
    names = [f"{name}.{suffix}" for suffix in ("txt", "md", "csv")]
    for file_name, content in zip(names, (text, f"{markdown_table(lines)}\n\n{said}\n"), strict=False):
        with files.replacing(directory / file_name) as file:
            file.write(content.encode())
    write_csv(directory / names[2], [dict(line) for line in lines])
    return names


def write(directory: Path, results: list[Result], lines: list[Line], said: str) -> list[Path]:
    """results.md, results.csv and accuracy.png in `directory`; their paths."""
    files.make_directory(directory)
    markdown, table, plot = (directory / name for name in ("results.md", "results.csv", "accuracy.png"))
    with files.replacing(markdown) as file:
        file.write(f"{markdown_table(lines)}\n\n{said}\n".encode())
    write_csv(table, [dict(line) for line in lines])
    accuracy_plot(plot, results)
    return [markdown, table, plot]


def accuracy_plot(path: Path, results: list[Result]) -> None:
    """Test accuracy per epoch of every student, and the teacher's last accuracy as a dashed line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, axes = plt.subplots(figsize=(7, 4.3), layout="constrained")
    for result in results:
        last = result.history[-1]["test_top1"]
        if result.name == "teacher":
            label = f"teacher {result.architecture}: {last:.2f} %"
            axes.axhline(last, color="0.4", linestyle="--", linewidth=1.2, label=label)
            continue
        epochs = [row["epoch"] for row in result.history]
        accuracy = [row["test_top1"] for row in result.history]
        axes.plot(epochs, accuracy, marker="o", markersize=3, label=f"{result.name}: {last:.2f} %")
    axes.set_xlabel("epoch")
    axes.set_ylabel("test accuracy, top-1 %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    student = next((r.architecture for r in results if r.name != "teacher"), "")
    axes.set_title(f"{student}: accuracy per epoch", loc="left")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    with files.replacing(path) as file:
        figure.savefig(image := io.BytesIO(), dpi=130, format="png")
        file.write(image.getvalue())
    plt.close(figure)


def _cell(result: Result, shown: Callable[[dict], str]) -> str:
    return shown(result.history[-1])


def _median(result: Result, column: str, form: str) -> str:
    """The median over epochs, so that a slow first epoch does not count; "-" where nothing was measured."""
    values = sorted(row[column] for row in result.history if column in row)
    return form.format(values[len(values) // 2]) if values else "-"
