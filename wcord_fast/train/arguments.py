"""The argument parser of the commands that have few options: its errors suggest the nearest name."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from .parser import UsageError


class Arguments(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` whose errors are UsageErrors of one line; options are not abbreviated."""

    def __init__(self, command: str, description: str | None) -> None:
        super().__init__(prog=f"wcord-fast {command}", description=description, allow_abbrev=False)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(f"unknown option {unknown[0].split('=')[0]!r}{self._nearest(unknown[0])}")
        return found

    def error(self, message: str) -> NoReturn:
        """Raise UsageError, with a suggestion where a choice was misspelt."""
        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if choice:
            near = difflib.get_close_matches(choice[1], re.findall(r"[\w.]+", choice[2]), n=1)
            message += f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(message)

    def _nearest(self, word: str) -> str:
        known = [option for action in self._actions for option in action.option_strings]
        near = difflib.get_close_matches(word.split("=")[0], known, n=1) if word.startswith("-") else []
        return f"; did you mean {near[0]!r}?" if near else "; see --help"
