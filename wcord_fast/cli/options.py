"""Option records: dataclasses whose fields give the options' types and defaults, and whose docstrings are the help.

A field Annotated[str, models.names] takes one of the names that `models.names()` returns; Annotated[str, "file"] and
Annotated[str, "directory"] take a path.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields
from typing import Any, NamedTuple, TypeVar, get_type_hints

from ..ops import checks

T = TypeVar("T")
Names = Callable[[], Iterable[str]]


class Option(NamedTuple):
    """One option.

    Attributes:
        hint: type of its value.
        default: its default; MISSING: it is a positional argument.
        help: its description.
        complete: a function that returns the names that it takes; or "file" or "directory".
    """

    hint: Any
    default: Any
    help: str
    complete: Names | str | None = None


def options_of(kind: type, prefix: str = "") -> dict[str, Option]:
    """The fields of a record by their keys, such as "epochs" or, with a prefix, "wcord.critic"."""
    sentences: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        text = (cls.__doc__ or "").partition("Attributes:")[2]
        for name, sentence in re.findall(r"^\s+(\w+): (.+(?:\n\s{9,}.+)*)", text, re.M):
            sentences[name] = " ".join(sentence.split())
    plain, annotated = get_type_hints(kind), get_type_hints(kind, include_extras=True)
    own = inspect.get_annotations(kind)  # come first, before those of the base classes
    return {
        prefix + f.name: Option(
            plain[f.name],
            f.default if f.default_factory is MISSING else f.default_factory(),
            sentences[f.name],
            next(iter(getattr(annotated[f.name], "__metadata__", ())), None),
        )
        for f in sorted(fields(kind), key=lambda f: f.name not in own)
        if f.name != "options"
    }


@dataclass
class DryRun:
    """The options of every command that trains.

    Attributes:
        dry_run: print the configuration (table, sweep: and the state of the runs), and train nothing.
    """

    dry_run: bool = False


def file_name(name: str) -> str:
    """The name of a network or data set as a part of a file's name."""
    return re.sub(r"[^\w.@+-]", "-", name)


def devices() -> tuple[str, ...]:
    """The values of an option that names a device, beside "cuda:N"."""
    return ("auto", "cpu", "cuda")


def check_paths(options: Any, *names: str) -> None:
    """Expand `~` in the path fields `names` of a record; ValueError for a value that is not a path."""
    for name in names:
        if getattr(options, name) is not None:
            setattr(options, name, checks.path(name, getattr(options, name)))


def check_seeds(seeds: list[int]) -> None:
    """ValueError unless the seeds are distinct integers of at least 0."""
    distinct("seeds", [checks.integer("seeds", seed, least=0) for seed in seeds])


def check_fraction(name: str, value: float) -> None:
    """ValueError unless `value` is above 0 and at most 1."""
    if not 0 < value <= 1:  # true for NaN, too
        raise ValueError(f"{name}: expected a fraction above 0 and at most 1, got {value:g}")


def distinct(name: str, values: list[T]) -> list[T]:
    """`values`; ValueError for an empty list or a repeated value."""
    if not values or len(set(values)) < len(values):
        raise ValueError(f"{name}: expected distinct values, got {', '.join(map(str, values)) or 'none'}")
    return values


def chosen(name: str, values: list[str], known: Iterable[str], of_all: Iterable[str] | None = None) -> list[str]:
    """`values` in the spelling of `known`, whatever their case; for "all" alone `of_all`, by default all of `known`.

    Raises:
        ValueError: an unknown value (the nearest is suggested), or a repeated one.
    """
    known = list(known)
    if values == ["all"]:
        return known if of_all is None else list(of_all)
    by_lower_case = {word.lower(): word for word in known}
    return distinct(name, [checks.choice(name, by_lower_case.get(value.lower(), value), known) for value in values])
