"""The logger to Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from .base import LoggedRun, Logger, Row

PROJECT = "wcord_fast"
ID_FILE = "wandb-id.txt"


class WandbLogger(Logger):
    """A run of Weights & Biases with a metric per column, whose step is the epoch.

    The environment variables of wandb apply: WANDB_MODE=offline writes to the run's folder only (`wandb sync` uploads
    it later), WANDB_PROJECT replaces the project "wcord_fast". A resumed run keeps its id, which is in `wandb-id.txt`.
    """

    def __init__(self, run: LoggedRun) -> None:
        super().__init__(run)
        import wandb

        id_file = None if run.directory is None else run.directory / ID_FILE
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=run.name,
            id=_saved_id(id_file) if run.history else None,
            dir=None if run.directory is None else run.directory.absolute(),
            config=run.spec,
            resume="allow",
            reinit="create_new",  # the caller's own run is not touched
        )
        if id_file is not None:
            id_file.write_text(f"{self._run.id}\n")

    @classmethod
    def failures(cls) -> tuple[type[Exception], ...]:
        """Errors of the disk, the server or the login."""
        import wandb

        return (OSError, wandb.Error)

    def write(self, history: Sequence[Row]) -> None:
        """Log an epoch."""
        self._run.log(history[-1], step=history[-1]["epoch"])

    def close(self) -> None:
        """End the log after its rows are uploaded or on the disk."""
        self._run.finish()


def _saved_id(file: Path | None) -> str | None:
    return file.read_text().strip() or None if file is not None and file.exists() else None
