"""The logger to TensorBoard's event files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .base import LoggedRun, Logger, Row

FOLDER = "tb"


class TensorBoardLogger(Logger):
    """Scalars in the folder `tb` of the run's folder, one per column and epoch."""

    def __init__(self, run: LoggedRun) -> None:
        super().__init__(run)
        self._writer: Any = None
        if run.directory is not None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            # purge_step hides the rows of a killed run after its last checkpoint.
            self._writer = SummaryWriter(str(run.directory / FOLDER), purge_step=len(run.history) + 1)

    def write(self, history: Sequence[Row]) -> None:
        """Log an epoch."""
        if self._writer is not None:
            row = history[-1]
            for name, value in row.items():
                if name != "epoch":
                    self._writer.add_scalar(name, value, row["epoch"])
            self._writer.flush()

    def close(self) -> None:
        """End the log."""
        if self._writer is not None:
            self._writer.close()
