"""The images of the training loop: this package's batches, or a `DataLoader` of the user's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, Self

import torch

from ..batch import Batch


class TrainingBatches(Protocol):
    """The training batches of one process.

    Attributes:
        images: rows of the training set.
        batch_size: rows of a whole batch, all processes' parts together.
    """

    images: int
    batch_size: int

    @property
    def device(self) -> torch.device:
        """The device of the batches."""

    def __len__(self) -> int:
        """Batches per epoch."""

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of epoch `epoch` (from 0)."""

    def once(self) -> Iterator[Batch]:
        """Every row once; it changes no random generator."""

    def weight(self, i: int) -> float:
        """The factor of this process' loss of batch i that makes the mean over processes the batch's loss."""

    def whole(self) -> Self:
        """The batches of one process that trains alone."""

    def described(self) -> dict[str, Any] | None:
        """The images' `shape`, `mean` and `std` for a checkpoint; None if they are not known."""
