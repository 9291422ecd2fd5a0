"""Files that cannot be read: one error that names them, or a data set without them."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from .decode import unreadable_message

log = logging.getLogger(__name__)

ADVICE = "skip_corrupt=True (--skip-corrupt) goes on without them"


def skip(files: Sequence[str], bad: Mapping[int, str], allowed: bool) -> tuple[str, ...]:
    """The files that are left out: those at `bad`, {index in `files`: reason}.

    Raises:
        ValueError: there are some, and `allowed` is False; the message counts all and names the first.
    """
    if not bad:
        return ()
    message = unreadable_message(list(bad.values()), len(files), len(files))
    if not allowed:
        raise ValueError(f"{message}. {ADVICE}")
    log.warning("left out: %s", message)
    return tuple(files[i] for i in bad)


def without(bad: Collection[int], values: Tensor) -> Tensor:
    """`values` [N, ...] without the rows `bad`; `values` itself if there are none."""
    if not bad:
        return values
    kept = torch.ones(len(values), dtype=torch.bool)
    kept[list(bad)] = False
    return values[kept]


def require_all_classes(classes: tuple[str, ...], labels: Tensor, folder: str | os.PathLike[str]) -> None:
    """ValueError if a class has no training image that can be read. `labels`: int64 [N]."""
    missing = torch.bincount(labels, minlength=len(classes)) == 0
    if missing.any():
        name = classes[int(missing.nonzero()[0])]
        raise ValueError(f"{folder}: no image of the class {name!r} can be read")
