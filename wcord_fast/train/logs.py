"""A run on the screen: messages, a progress bar, a line per epoch. `loggers` writes the rows that are kept."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from .loggers import Row
from .ranks import is_main

TIMING = ("images_per_s", "loss_share", "seconds")  # columns that differ between two equal runs


class _ToStandardOutput(logging.StreamHandler):
    """Ends the program where the reader has closed the output (`| head`); logging would print a traceback and go on."""

    def handleError(self, record: logging.LogRecord) -> None:
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            raise
        super().handleError(record)


def to_screen(quiet: bool) -> None:
    """Send the package's log to standard output from now on; only warnings if `quiet`."""
    log = logging.getLogger("wcord_fast")
    log.handlers = [_ToStandardOutput(sys.stdout)]
    log.setLevel(logging.WARNING if quiet else logging.INFO)


class Progress:
    """A progress bar for the steps of one epoch; silent if `quiet` or if the screen is not a terminal."""

    def __init__(self, batches: Iterable, total: int, title: str, quiet: bool) -> None:
        disabled = quiet or not is_main() or not sys.stderr.isatty()
        self._bar = tqdm(batches, total=total, desc=title, leave=False, disable=disabled, unit="batch")

    def __iter__(self) -> Iterator:
        return iter(self._bar)

    def show(self, values: dict[str, float]) -> None:
        self._bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()}, refresh=False)


def epoch_line(name: str, row: Row, epochs: int) -> str:
    """One line for the screen: the epoch's losses, accuracy and speed."""
    loss_share = f"  loss {row['loss_share']:.0%} of step" if row["loss_share"] else ""
    metrics = {"train": "train_top1", "test": "test_top1"}
    accuracy = "".join(f"  {split} {row[key]:6.2f} %" for split, key in metrics.items() if key in row)
    return (
        f"{name:<10} epoch {row['epoch']:>3}/{epochs}  loss {row['loss']:8.4f}{accuracy}"
        f"  {row['images_per_s']:7.0f} img/s{loss_share}"
    )
