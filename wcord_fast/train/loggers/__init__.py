"""Loggers write a run's rows, one per epoch, beside its checkpoint. `Logger` is the protocol."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

from ...dotted import resolve
from ...extras import MissingExtra
from ...ops import checks
from .base import LoggedRun, Logger, Row
from .csv_file import NAME as CSV
from .csv_file import write_csv

__all__ = ["CSV", "DEFAULT", "LoggedRun", "Logger", "Loggers", "Row", "names", "spelled", "write_csv"]

log = logging.getLogger("wcord_fast.train.loggers")

DEFAULT = ("csv", "tensorboard")


class Entry(NamedTuple):
    """A logger of this package: its module and class, the package that it needs and the extra that installs it."""

    module: str
    cls: str
    package: str | None = None
    extra: str | None = None


LOGGERS = {
    "csv": Entry("csv_file", "CSVLogger"),
    "tensorboard": Entry("tensorboard", "TensorBoardLogger", "tensorboard", "train"),
    "wandb": Entry("wandb", "WandbLogger", "wandb", "wandb"),
    "mlflow": Entry("mlflow", "MLflowLogger", "mlflow", "mlflow"),
}


def names() -> tuple[str, ...]:
    """The names of the loggers; the dotted path of a user's class is accepted, too."""
    return tuple(LOGGERS)


def spelled(names: Any) -> list[str]:
    """Names of loggers in their canonical spelling; each can be made.

    Raises:
        TypeError: not a sequence of names.
        ValueError: an unknown name (the nearest is suggested), a repeated one, or a dotted path without a callable.
        MissingExtra: a package is not installed; the message names the extra.
    """
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"loggers: expected a list of {', '.join(LOGGERS)} or dotted paths, got {names!r}")
    result: list[str] = []
    for name in map(str.strip, names):
        if "." in name or ":" in name:
            resolve("loggers", name)
        else:
            name = checks.choice("loggers", name.lower(), LOGGERS)
            _require_installed(name)
        if name in result:
            raise ValueError(f"loggers: {name} is named twice")
        result.append(name)
    return result


def _require_installed(name: str) -> None:
    _, _, package, extra = LOGGERS[name]
    if package is not None and find_spec(package) is None:
        raise MissingExtra(f"loggers: {name!r} needs {package}, not installed here: pip install 'wcord-fast[{extra}]'")


def _maker(name: str) -> Callable[[LoggedRun], Any]:
    if name not in LOGGERS:
        return resolve("loggers", name)
    entry = LOGGERS[name]
    return getattr(import_module(f".{entry.module}", __name__), entry.cls)


class Loggers:
    """Several loggers as one: `with Loggers(names, run) as loggers: ... loggers.write(history)`.

    A logger that raises one of its `failures` is closed with a warning; the run and the other loggers continue.
    """

    def __init__(self, names: Sequence[str], run: LoggedRun) -> None:
        self._run = run
        self._open: dict[str, Any] = {}
        for name in names:
            make = _maker(name)
            with self._or_warn(name, make):
                self._open[name] = make(run)

    def write(self, history: Sequence[Row]) -> None:
        """Pass the rows so far to every logger."""
        for name, logger in list(self._open.items()):
            with self._or_warn(name, logger):
                logger.write(history)

    def __enter__(self) -> Loggers:
        return self

    def __exit__(self, *error: object) -> None:
        for name, logger in list(self._open.items()):
            with self._or_warn(name, logger):
                logger.close()

    @contextmanager
    def _or_warn(self, name: str, logger: Any) -> Iterator[None]:
        try:
            yield
        except getattr(logger, "failures", Logger.failures)() as error:
            self._open.pop(name, None)
            reason = getattr(error, "strerror", None) or error
            log.warning(
                "%s: no more logs by %s (%s); the run goes on", self._run.directory or self._run.name, name, reason
            )
