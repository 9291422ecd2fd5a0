"""The argument parser of the commands that have few options, and what several commands read from an option's text."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..ops import checks
from .usage import UsageError


class Arguments(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` whose errors are UsageErrors of one line; options are not abbreviated."""

    def __init__(self, command: str, description: str | None) -> None:
        super().__init__(prog=f"wcord-fast {command}", description=description, allow_abbrev=False)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(f"unknown option {unknown[0].split('=')[0]!r}{self._nearest(unknown[0])}")
        return found

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """As argparse's; what is none of `choices` is answered with the nearest."""
        if "choices" in options:
            options.setdefault("type", _one_of(options["choices"]))
        return super().add_argument(*names, **options)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(message)

    def _nearest(self, word: str) -> str:
        known = [option for action in self._actions for option in action.option_strings]
        near = difflib.get_close_matches(word.split("=")[0], known, n=1) if word.startswith("-") else []
        return f"; did you mean {near[0]!r}?" if near else "; see --help"


def path(text: str) -> Path:
    """The type of an option that names a file or a folder."""
    try:
        return Path(checks.path("path", text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("path: ")) from None


def usage(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """function(...), its ValueError a UsageError."""
    try:
        return function(*arguments, **named)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from None


def seeds_of(text: str) -> list[int]:
    """Seeds by comma."""
    return distinct("seeds", [usage(_seed, part) for part in text.split(",")])


def share_of(name: str, text: str) -> float:
    """A number above 0 and at most 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:  # NaN is not
        raise UsageError(f"{name}: expected a share above 0 and at most 1, got {text!r}")
    return value


def distinct(name: str, found: list) -> list:
    """`found`, or a UsageError if one is there twice."""
    if len(set(found)) < len(found):
        raise UsageError(f"{name}: expected different ones, got {', '.join(map(str, found))}")
    return found


def _one_of(choices: Iterable[str]) -> Callable[[str], str]:
    def read(text: str) -> str:
        try:
            chosen: str = checks.choice("choice", text, choices)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix("choice: ")) from None
        return chosen

    return read


def _seed(text: str) -> int:
    if not text.strip().isdecimal():
        raise ValueError(f"seeds: expected whole numbers by comma, got {text!r}")
    return int(text)
