"""The protocol of a logger, and the record of its run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class LoggedRun:
    """The run of a logger.

    Attributes:
        name: the run's name, after that of the folder of the runs that it is compared with.
        directory: where its files are; None: nothing is written.
        spec: the run's identity (network, data, method, recipe), in nested plain values.
        history: the rows of the epochs that an earlier process trained; empty for a new run.
    """

    name: str
    directory: Path | None = None
    spec: dict[str, Any] = field(default_factory=dict)
    history: Sequence[Row] = ()


class Logger:
    """A log of one run, in one place. A logger is made from a `LoggedRun`; the main process alone makes one."""

    def __init__(self, run: LoggedRun) -> None:
        self.run = run

    @classmethod
    def failures(cls) -> tuple[type[Exception], ...]:
        """Exceptions that end the log, with a warning, and not the run."""
        return (OSError,)

    def write(self, history: Sequence[Row]) -> None:
        """Log an epoch, whose checkpoint is on the disk.

        Args:
            history: a row per epoch; the last one is new. Columns are "epoch" (counted from 1), losses, accuracies in
                percent, "lr", "images_per_s", "seconds".
        """
        raise NotImplementedError

    def close(self) -> None:
        """End the log; called once, also after a training that failed."""


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted keys."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return result
