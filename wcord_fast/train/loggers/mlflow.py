"""MLflow."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .base import LoggedRun, Logger, Row, flat

EXPERIMENT = "wcord_fast"
ID_FILE = "mlflow-id.txt"
LONGEST = 500  # characters of a parameter, as every release of MLflow takes
MOST = 100  # parameters in one call


class MLflowLogger(Logger):
    """A run of MLflow: the run's spec as parameters, a metric per column, whose step is the epoch.

    Its environment variables hold. MLFLOW_TRACKING_URI says where: a server, `sqlite:///FILE`, or `file:FOLDER`, for
    which releases from 3.13 on want MLFLOW_ALLOW_FILE_STORE=true. MLFLOW_EXPERIMENT_NAME replaces the experiment
    "wcord_fast". A run that is resumed goes on under its id, which stands in `mlflow-id.txt`.
    """

    def __init__(self, run: LoggedRun) -> None:
        super().__init__(run)
        import mlflow

        self._entities = mlflow.entities
        self._client = mlflow.MlflowClient()
        known = None if run.directory is None else run.directory / ID_FILE
        self._id = self._resumed(known) or self._begun()
        if known is not None:
            known.write_text(f"{self._id}\n")

    @classmethod
    def failures(cls) -> tuple[type[Exception], ...]:
        """No disk, no server, or a run that it does not know."""
        import mlflow

        return (OSError, mlflow.MlflowException)

    def write(self, history: Sequence[Row]) -> None:
        """Log an epoch."""
        row, now = history[-1], round(1000 * time.time())
        metrics = [
            self._entities.Metric(name, float(value), now, row["epoch"])
            for name, value in row.items()
            if name != "epoch"
        ]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self) -> None:
        """End the log."""
        self._client.set_terminated(self._id)

    def _resumed(self, known: Path | None) -> str | None:
        """The id of the run that an earlier process began, now running again; None if none did."""
        if not self.run.history or known is None or not known.exists():
            return None
        result = known.read_text().strip()
        self._client.update_run(result, status="RUNNING")
        return result

    def _begun(self) -> str:
        """The id of a new run with its parameters."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        experiment = self._client.get_experiment_by_name(name)
        where = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        result: str = self._client.create_run(where, run_name=self.run.name).info.run_id
        params: list[Any] = [
            self._entities.Param(key, str(value)[:LONGEST]) for key, value in flat(self.run.spec).items()
        ]
        for first in range(0, len(params), MOST):
            self._client.log_batch(result, params=params[first : first + MOST])
        return result
