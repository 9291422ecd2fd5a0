"""Options that are written once: a record (dataclass) or one function lists them, others take them as keywords."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar

from ..nearest import nearest

R = TypeVar("R")


def keywords_of(
    source: Any, *, without: Collection[str] = (), renamed: Mapping[str, str] | None = None
) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """A decorator: the function's `**options` are the options of `source`, with its defaults.

    The function gets every option, whether it was given or not. Its signature shows them one by one.

    Args:
        source: a dataclass, whose fields are the options, or a function, whose keyword-only parameters are.
        without: options that the function does not have.
        renamed: option -> the name under which the caller gives it; the function gets it under that name too.
    Raises (when the function is called):
        TypeError: a keyword that is no option; the nearest is suggested.
    """
    names = renamed or {}
    options = {names.get(p.name, p.name): p for p in _parameters(source) if p.name not in without}
    defaults = {name: p.default for name, p in options.items()}

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        own = inspect.signature(function)
        kept = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        known = {p.name for p in kept} | options.keys()
        name = function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def front(*args: Any, **given: Any) -> R:
            if not given.keys() <= known:
                wrong = next(word for word in given if word not in known)
                near = names[wrong] if wrong in names else nearest(wrong, sorted(known - {"self"}))
                hint = "" if near is None else f"; did you mean {near!r}?"
                raise TypeError(f"{name}() got an unexpected keyword argument {wrong!r}{hint}")
            return function(*args, **{**defaults, **given})

        shown = [p.replace(name=as_, kind=p.KEYWORD_ONLY) for as_, p in options.items()]
        front.__signature__ = own.replace(parameters=[*kept, *shown])  # type: ignore[attr-defined]
        return front

    return decorate


def _parameters(source: Any) -> list[inspect.Parameter]:
    if not is_dataclass(source):
        return [p for p in inspect.signature(source).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return [
        inspect.Parameter(
            f.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=f.default if f.default_factory is MISSING else f.default_factory(),
            annotation=f.type,
        )
        for f in fields(source)
    ]
