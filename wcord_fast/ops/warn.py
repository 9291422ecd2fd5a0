"""Warnings that point at the caller's line."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

_PACKAGE = str(Path(__file__).resolve().parent.parent)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the nearest frame outside this package."""
    level, frame = 1, sys._getframe()
    while frame is not None and str(Path(frame.f_code.co_filename)).startswith((_PACKAGE, "<frozen")):
        level, frame = level + 1, frame.f_back  # type: ignore[assignment]
    warnings.warn(message, category, stacklevel=level)
