"""What a run leaves behind as it goes: one CSV row per epoch, TensorBoard scalars, a line on the screen."""

from __future__ import annotations

import csv
import io
import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from . import files
from .ranks import is_main

log = logging.getLogger(__name__)

CSV = "metrics.csv"
TIMING = ("images_per_s", "loss_share", "seconds")  # columns that differ between two equal runs
Row = dict[str, Any]


def to_screen(quiet: bool) -> None:
    """From now on the package says what it does on standard output; warnings only if `quiet`."""
    log = logging.getLogger("wcord_fast")
    log.handlers = [logging.StreamHandler(sys.stdout)]
    log.setLevel(logging.WARNING if quiet else logging.INFO)


def write_csv(path: Path, rows: list[Row]) -> None:
    """All rows, atomically; columns in the order in which they first appear."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    with files.replacing(path) as file:
        file.write(text.getvalue().encode())


class TensorBoard:
    """Scalars under `directory`/tb, one per column and epoch; nothing when switched off or not writable."""

    def __init__(self, directory: Path | None, enabled: bool, first_epoch: int) -> None:
        self._writer: Any = None
        if directory is not None and enabled and is_main():
            self._directory = directory / "tb"
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            # purge_step hides what a killed run wrote after its last checkpoint.
            with self._or_warn():
                self._writer = SummaryWriter(str(self._directory), purge_step=first_epoch + 1)

    def write(self, row: Row) -> None:
        if self._writer is not None:
            with self._or_warn():
                for name, value in row.items():
                    if name != "epoch":
                        self._writer.add_scalar(name, value, row["epoch"])
                self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            with self._or_warn():
                self._writer.close()

    @contextmanager
    def _or_warn(self) -> Iterator[None]:
        """A log that cannot be written is a warning, and the end of the log, not of the run."""
        try:
            yield
        except OSError as error:
            self._writer = None
            reason = error.strerror or error
            log.warning("%s: no more TensorBoard logs (%s); metrics.csv has them all", self._directory, reason)


class Progress:
    """A progress bar for the steps of one epoch; silent when `quiet` or when the screen is no terminal."""

    def __init__(self, batches: Iterable, total: int, title: str, quiet: bool) -> None:
        hidden = quiet or not is_main() or not sys.stderr.isatty()
        self._bar = tqdm(batches, total=total, desc=title, leave=False, disable=hidden, unit="batch")

    def __iter__(self) -> Iterator:
        return iter(self._bar)

    def show(self, values: dict[str, float]) -> None:
        self._bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()}, refresh=False)


def epoch_line(name: str, row: Row, epochs: int) -> str:
    """One line for the screen: the epoch's losses, accuracy and speed."""
    share = f"  loss {row['loss_share']:.0%} of step" if row["loss_share"] else ""
    named = {"train": "train_top1", "test": "test_top1"}
    accuracy = "".join(f"  {split} {row[key]:6.2f} %" for split, key in named.items() if key in row)
    return (
        f"{name:<10} epoch {row['epoch']:>3}/{epochs}  loss {row['loss']:8.4f}{accuracy}"
        f"  {row['images_per_s']:7.0f} img/s{share}"
    )
