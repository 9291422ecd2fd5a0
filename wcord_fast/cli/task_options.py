"""A command's own options; what is left goes to the driver's configuration."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from .. import distill
from ..ops import checks
from .arguments import distinct, usage
from .usage import UsageError


def take_options(argv: list[str], defaults: Mapping[str, Any]) -> tuple[argparse.Namespace, list[str]]:
    """The options of `defaults` ("--student-size" is student_size), as text, and the other arguments.

    A flag's default is False. UsageError for one that is nearly spelt like these.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name, default in defaults.items():
        action: dict[str, Any] = {"action": "store_true"} if default is False else {"default": default}
        parser.add_argument(f"--{name.replace('_', '-')}", **action)
    try:
        asked, rest = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise UsageError(str(error)) from None
    return asked, rest


def nearest(error: UsageError, names: Iterable[str]) -> UsageError:
    """An "unknown option" of the driver's parser, with the nearest of the command's own `names` where one is near."""
    said = str(error)
    if said.startswith("unknown option '--"):
        word = said.split("'")[1]
        near = difflib.get_close_matches(word, [f"--{n.replace('_', '-')}" for n in names], n=1)
        if near:
            return UsageError(f"unknown option {word!r}; did you mean {near[0]!r}?")
    return error


def methods(text: str) -> list[str]:
    """Methods by comma, in their one spelling; none with a KD term, which needs one label set."""
    found = []
    for part in text.split(","):
        base, plus = usage(distill.parse, part)
        if plus or base == "kd":
            raise UsageError(f"methods: {part!r} has a KD term, but the two networks of this task share no label set")
        found.append(base)
    return distinct("methods", found)


def choices(name: str, text: str, known: Iterable[str]) -> list[str]:
    """Several of `known` by comma, or "all"."""
    if text == "all":
        return list(known)
    return distinct(name, [usage(checks.choice, name, part.strip().lower(), known) for part in text.split(",")])
