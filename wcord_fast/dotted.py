"""Functions and classes of a user's code, found by their dotted path."""

from __future__ import annotations

import pkgutil
from typing import Any


def resolve(name: str, path: str) -> Any:
    """The function or class at "package.module.attribute" or "package.module:attribute".

    Args:
        name: the argument or option, named in the error message.
        path: the dotted path.
    Raises:
        ValueError: `path` cannot be imported, or is not callable.
    """
    try:
        result = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{name}: {path!r} cannot be imported: {error}") from error
    if not callable(result):
        raise ValueError(f"{name}: expected {path!r} to be a function or a class, got {type(result).__name__}")
    return result


def is_path(name: str, *, libraries: bool = False) -> bool:
    """Whether `name` is a path for `resolve`, so a user's code; with `libraries`, "timm:NAME" names a network."""
    return "." in name.partition(":")[0] or (":" in name and not libraries)


def qualified(value: Any) -> str:
    """Module and name of a function or class: for messages, and to recognise an object that was imported again."""
    value = getattr(value, "func", value)  # of a functools.partial
    return f"{value.__module__}.{getattr(value, '__qualname__', type(value).__qualname__)}"
