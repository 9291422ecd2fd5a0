"""An option's text, or what stands in a YAML file, as a value of the field's type; the messages for what is not."""

from __future__ import annotations

from contextlib import suppress
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from .usage import did_you_mean


class RefusedValue(Exception):
    """A value that does not fit its option; no ValueError or TypeError, which argparse would put in other words."""


class Reader:
    """A function from text or plain values to values of a type; RefusedValue names the option.

    Args:
        name: of the option, as in a message.
        hint: bool, int, float, str, a Literal, None, a union of those, or a list of one of them.
    """

    def __init__(self, name: str, hint: Any) -> None:
        self.name, self.hint = name, hint

    def __call__(self, value: Any) -> Any:
        try:
            return convert(self.hint, value)
        except OverflowError:  # of float(value), which names nothing
            raise RefusedValue(f"{self.name}: expected a number below 1.8e308, got a longer one") from None
        except _NoFit as error:
            raise RefusedValue(f"{self.name}: {error}") from None

    def __repr__(self) -> str:  # what --help shows as the type
        return told(self.hint)


def convert(hint: Any, value: Any) -> Any:
    """`value` as the type `hint`; _NoFit if it is none, OverflowError for a float that is too large for one."""
    if get_origin(hint) is list:
        return _list(hint, value)
    kinds = list(get_args(hint)) if get_origin(hint) in (Union, UnionType) else [hint]
    if type(None) in kinds and value in (None, "null"):
        return None
    forms = [value]  # text may stand for a number or a truth value
    if isinstance(value, str):
        with suppress(yaml.YAMLError, ValueError):
            forms.append(yaml.safe_load(value))
        with suppress(ValueError):  # 1e-4 is none in YAML 1.1
            forms.append(float(value))
    for kind in kinds:
        for form in forms:
            with suppress(_NoFit):
                return _plain(kind, form)
    said = " or ".join(map(told, kinds))
    words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    raise _NoFit(f"expected {said}, got {value!r}{did_you_mean(value, map(str, words))}")


def told(hint: Any) -> str:
    """A type in words."""
    if get_origin(hint) is list:
        return f"list of {told(get_args(hint)[0])} by comma"
    if get_origin(hint) is Literal:
        words = [repr(word) for word in get_args(hint)]
        return words[0] if len(words) == 1 else f"one of {', '.join(words)}"
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(told, get_args(hint)))
    return "null" if hint is type(None) else hint.__name__


class _NoFit(Exception):
    """The rest of the message for a value that is not of the type."""


def _plain(kind: Any, value: Any) -> Any:
    if get_origin(kind) is Literal:
        if any(type(value) is type(word) and value == word for word in get_args(kind)):
            return value
    elif kind is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif type(value) is kind:
        return value
    raise _NoFit


def _list(hint: Any, value: Any) -> list[Any]:
    (inner,) = get_args(hint)
    if isinstance(value, str):
        text = value.strip()
        bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
        value = [part.strip().strip("'\"") for part in bare.split(",")] if bare.strip() else []
    if not isinstance(value, list):
        raise _NoFit(f"expected {told(hint)}, got {value!r}")
    return [convert(inner, part) for part in value]
