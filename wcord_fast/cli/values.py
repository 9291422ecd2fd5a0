"""Convert an option's text or a YAML file's value to the type of its field; messages for values that do not fit."""

from __future__ import annotations

from contextlib import suppress
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from .usage import did_you_mean


def read(hint: Any, value: Any) -> Any:
    """`value`, a text or a plain value, converted to the type `hint`.

    Args:
        hint: bool, int, float, str, a Literal, None, a union of those, or a list of one of them.
    Raises:
        ValueError: `value` is not of this type; the message says what was expected, without the option's name.
        OverflowError: an integer that is too large for a float.
    """
    kinds = list(get_args(hint)) if get_origin(hint) in (Union, UnionType) else [hint]
    if type(None) in kinds and value in (None, "null"):
        return None
    for kind in kinds:
        if get_origin(kind) is list:
            return [read(get_args(kind)[0], item) for item in _items(kind, value)]
    candidates = [value]  # text may stand for a number or a truth value
    if isinstance(value, str):
        with suppress(yaml.YAMLError, ValueError):
            candidates.append(yaml.safe_load(value))
        with suppress(ValueError):  # YAML 1.1 reads 1e-4 as text
            candidates.append(float(value))
    for kind in kinds:
        for candidate in candidates:
            if kind is float and isinstance(candidate, int | float) and not isinstance(candidate, bool):
                return float(candidate)
            if type(candidate) is kind or (get_origin(kind) is Literal and candidate in get_args(kind)):
                return candidate
    raise ValueError(f"expected {in_words(hint)}, got {value!r}{did_you_mean(value, words_of(hint))}")


def in_words(hint: Any) -> str:
    """The description of a type in help and messages."""
    if get_origin(hint) is list:
        return f"list of {in_words(get_args(hint)[0])} separated by commas"
    if get_origin(hint) is Literal:
        words = [repr(word) for word in get_args(hint)]
        return words[0] if len(words) == 1 else f"one of {', '.join(words)}"
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(in_words, get_args(hint)))
    return "null" if hint is type(None) else hint.__name__


def words_of(hint: Any) -> list[str]:
    """The words that a type allows, if it names any."""
    if hint is bool:
        return ["true", "false"]
    if get_origin(hint) is Literal:
        return [str(word) for word in get_args(hint)]
    return [word for part in get_args(hint) for word in words_of(part)]


def _items(hint: Any, value: Any) -> list[Any]:
    if isinstance(value, str):
        text = value.strip()
        bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
        return [part.strip().strip("'\"") for part in bare.split(",")] if bare.strip() else []
    if isinstance(value, list):
        return value
    raise ValueError(f"expected {in_words(hint)}, got {value!r}")
