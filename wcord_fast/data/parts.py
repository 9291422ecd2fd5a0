"""The images of each batch of an epoch, and the part of a batch that each process takes."""

from __future__ import annotations

from copy import copy
from typing import Any, Self

import torch

from ..ops import checks


class Parts:
    """Batches of which each of `world` ranks takes a consecutive part; the parts' sizes differ by one image at most.

    Batch normalisation over one image of 1x1 maps has no variance, so the last batch leaves no rank with one image: the
    images after the last whole batch join it, unless they are `least` for every rank. Every image is in a batch of
    every epoch. A rank still gets single images if batch_size is below 2 * world, and may get one if the whole set has
    fewer images than that.

    Args:
        images: number of images.
        batch_size: images in a batch, over all ranks.
        part: (rank, world).
        drop_last: leave out the images after the last whole batch; no batch is larger or smaller.
        least: images of each rank from which on a smaller last batch is made; at most a rank's part of a whole batch.

    Raises:
        TypeError, ValueError: a wrong argument; batch_size below `world`, or no batch at all.
    """

    def __init__(
        self, images: int, batch_size: int, part: tuple[int, int], drop_last: bool = False, least: int = 2
    ) -> None:
        self.images, self.drop_last, self.least = images, checks.boolean("drop_last", drop_last), least
        self.batch_size = checks.integer("batch_size", batch_size, least=1)
        self.rank, self.world = _checked_part(part)
        if self.batch_size < self.world:
            raise ValueError(
                f"batch_size: expected at least one image for each of {self.world} processes, got {batch_size}"
            )
        if len(self) == 0:
            text = f"{batch_size} with drop_last={drop_last} and {self.world} processes"
            raise ValueError(f"batch_size: {text} leaves no batch of {images} images")

    dataset: Any  # set by the subclass

    @property
    def device(self) -> torch.device:
        """The device of the batches."""
        return self.dataset.device

    def described(self) -> dict[str, Any] | None:
        """Shape [C, H, W] of the images, and `mean` and `std` per channel for pixels in [0, 1]."""
        data = self.dataset
        return {"shape": [data.channels, *data.image_size], "mean": list(data.mean), "std": list(data.std)}

    def __len__(self) -> int:
        """Batches per epoch."""
        whole, rest = divmod(self.images, self.batch_size)
        if self.drop_last:
            return whole
        least = min(self.least, self.batch_size // self.world) if whole else 1
        return whole + (rest >= self.world * least)

    def size(self, i: int) -> int:
        """Images in batch i, over all ranks."""
        last = i == len(self) - 1 and not self.drop_last
        return self.images - i * self.batch_size if last else self.batch_size

    def rows(self, i: int) -> slice:
        """This rank's part of batch i, as a slice of the epoch's permutation."""
        first, size = i * self.batch_size, self.size(i)
        return slice(first + size * self.rank // self.world, first + size * (self.rank + 1) // self.world)

    def weight(self, i: int) -> float:
        """W * B_rank / B: with this weight, the mean over ranks of their parts' means is the mean over batch i."""
        rows = self.rows(i)
        return self.world * (rows.stop - rows.start) / self.size(i)

    def whole(self) -> Self:
        """These batches for one process, undivided."""
        batches = copy(self)
        batches.rank, batches.world = 0, 1
        return batches

    def in_order(self) -> list[slice]:
        """This rank's parts of the batches of all images in their order; `drop_last` leaves none out here."""
        batches = copy(self)
        batches.drop_last = False
        return [batches.rows(i) for i in range(len(batches))]

    def checked_position(self, epoch: int, start: int) -> tuple[int, int]:
        """A position in training after a check: `epoch` counts from 0, `start` is a batch number of it or its end."""
        epoch, start = checks.integer("epoch", epoch, least=0), checks.integer("start", start, least=0)
        if start > len(self):
            raise ValueError(f"start: expected at most {len(self)}, the batches of an epoch, got {start}")
        return epoch, start


def _checked_part(part: tuple[int, int]) -> tuple[int, int]:
    if not isinstance(part, tuple | list) or len(part) != 2:
        raise TypeError(f"part: expected (rank, world), got {part!r}")
    rank, world = (checks.integer("part", value, least=0) for value in part)
    if rank >= world:
        raise ValueError(f"part: expected (rank, world) with rank below world, got {part!r}")
    return rank, world
