"""One CSV row per epoch."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from .. import files
from .base import LoggedRun, Logger, Row

NAME = "metrics.csv"


class CSVLogger(Logger):
    """`metrics.csv` in the run's folder, written anew after every epoch."""

    def __init__(self, run: LoggedRun) -> None:
        super().__init__(run)
        if run.history:  # an earlier process may have ended between the checkpoint and this file
            self.write(run.history)

    @classmethod
    def failures(cls) -> tuple[type[Exception], ...]:
        """None: a folder that cannot be written has no checkpoints either."""
        return ()

    def write(self, history: Sequence[Row]) -> None:
        """Log an epoch; raises files.OutputError."""
        if self.run.directory is not None:
            write_csv(self.run.directory / NAME, history)


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write all rows, atomically, with columns in the order in which they first appear."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    with files.replacing(path) as file:
        file.write(text.getvalue().encode())
