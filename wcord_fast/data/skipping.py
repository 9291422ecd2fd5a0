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
    """The files that are left out: those at `bad`, {place in `files`: why}.

    Raises:
        ValueError: there are some, and it is not `allowed`; all are counted, the first are named.
    """
    if not bad:
        return ()
    message = unreadable_message(list(bad.values()), len(files), len(files))
    if not allowed:
        raise ValueError(f"{message}. {ADVICE}")
    log.warning("left out: %s", message)
    return tuple(files[i] for i in bad)


def without(bad: Collection[int], values: Tensor) -> Tensor:
    """`values` [N, ...] without the rows `bad`; the same tensor if there are none."""
    if not bad:
        return values
    good = torch.ones(len(values), dtype=torch.bool)
    good[list(bad)] = False
    return values[good]


def require_all(classes: tuple[str, ...], labels: Tensor, folder: str | os.PathLike[str]) -> None:
    """ValueError if a class has no training image that can be read. `labels`: int64 [N]."""
    bare = torch.bincount(labels, minlength=len(classes)) == 0
    if bare.any():
        name = classes[int(bare.nonzero()[0])]
        raise ValueError(f"{folder}: no image of the class {name!r} can be read")
