"""Warnings that point at the caller's line."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from types import FrameType
from typing import Any

import torch

_PASSED_OVER = (
    str(Path(__file__).resolve().parent.parent),
    str(Path(torch.__file__).resolve().parent),
    "<frozen",
    "<eval_with_key",
)

# Place of a warning of `warn_once` -> the filters then in force. `catch_warnings` makes another list, so a warning
# inside it appears even if it appeared before.
_warned: dict[tuple[str, int], Any] = {}


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the nearest frame outside this package and torch (whose `Module.__call__` stands before `forward`)."""
    warnings.warn(message, category, stacklevel=_caller()[0])


def warn_once(message: str, category: type[Warning] = UserWarning) -> None:
    """`warn`, but once per line of the caller, whatever numbers the message holds."""
    level, frame = _caller()
    place = ("", 0) if frame is None else (frame.f_code.co_filename, frame.f_lineno)
    if _warned.get(place) is warnings.filters:
        return
    warnings.warn(message, category, stacklevel=level)
    _warned[place] = warnings.filters  # a filter that raises comes first, every time


def _caller() -> tuple[int, FrameType | None]:
    """The stack level, seen from the caller, of the nearest frame outside the package and torch, and that frame."""
    level, frame = 0, sys._getframe()
    while frame is not None and frame.f_code.co_filename.startswith(_PASSED_OVER):
        level, frame = level + 1, frame.f_back  # type: ignore[assignment]
    return level, frame
