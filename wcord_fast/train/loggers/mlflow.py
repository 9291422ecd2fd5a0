"""The logger to MLflow."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .base import LoggedRun, Logger, Row, flat

EXPERIMENT = "wcord_fast"
ID_FILE = "mlflow-id.txt"
MAX_LENGTH = 500  # characters of a parameter that every release of MLflow accepts
MAX_PARAMETERS = 100  # in one call


class MLflowLogger(Logger):
    """A run of MLflow: the run's spec as parameters, a metric per column, whose step is the epoch.

    MLflow's environment variables apply. MLFLOW_TRACKING_URI is a server, `sqlite:///FILE`, or `file:FOLDER`, for which
    releases from 3.13 on need MLFLOW_ALLOW_FILE_STORE=true. MLFLOW_EXPERIMENT_NAME replaces the experiment
    "wcord_fast". A resumed run keeps its id, which is in `mlflow-id.txt`.
    """

    def __init__(self, run: LoggedRun) -> None:
        super().__init__(run)
        import mlflow

        self._entities = mlflow.entities
        self._client = mlflow.MlflowClient()
        id_file = None if run.directory is None else run.directory / ID_FILE
        self._id = self._resumed(id_file) or self._new_run()
        if id_file is not None:
            id_file.write_text(f"{self._id}\n")

    @classmethod
    def failures(cls) -> tuple[type[Exception], ...]:
        """Errors of the disk or the server, and an unknown run."""
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

    def _resumed(self, id_file: Path | None) -> str | None:
        """Set the run of an earlier process to running again and return its id; None without such a run."""
        if not self.run.history or id_file is None or not id_file.exists():
            return None
        result = id_file.read_text().strip()
        self._client.update_run(result, status="RUNNING")
        return result

    def _new_run(self) -> str:
        """Make a new run with its parameters; return its id."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        result: str = self._client.create_run(experiment_id, run_name=self.run.name).info.run_id
        params: list[Any] = [
            self._entities.Param(key, str(value)[:MAX_LENGTH]) for key, value in flat(self.run.spec).items()
        ]
        for first in range(0, len(params), MAX_PARAMETERS):
            self._client.log_batch(result, params=params[first : first + MAX_PARAMETERS])
        return result
