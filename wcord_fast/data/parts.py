"""The images of each batch of an epoch, and the part of a batch that each process takes."""

from __future__ import annotations

from copy import copy
from typing import Any, Self

import torch

from ..ops import checks


class Parts:
    """Batches of which each of `world` ranks takes a part: consecutive, and as equal as can be.

    Batch normalisation over one image of 1x1 maps has no variance, so no rank is left with one image by the end of an
    epoch: what is left for a last batch joins the batch before, which is then larger, unless it has `least` images for
    every rank. Every image is in a batch of every epoch. Two cases give a rank a single image all the same: a
    batch_size below 2 * world, whose batches all do, and a set of fewer images than that, which is one batch.

    Args:
        images: how many there are.
        batch_size: of all ranks together.
        part: (rank, world).
        drop_last: the images left after the last whole batch are left out; no batch is larger or smaller.
        least: images that a rank gets of a last batch that is one of its own (fewer if its part of a whole batch has).

    Raises:
        ValueError: batch_size below `world`, or no batch at all.
    """

    def __init__(
        self, images: int, batch_size: int, part: tuple[int, int], drop_last: bool = False, least: int = 2
    ) -> None:
        self.images, self.drop_last, self.least = images, drop_last, least
        self.batch_size = checks.integer("batch_size", batch_size, least=1)
        self.rank, self.world = part
        if self.batch_size < self.world:
            raise ValueError(
                f"batch_size: expected at least one image for each of {self.world} processes, got {batch_size}"
            )
        if len(self) == 0:
            text = f"{batch_size} with drop_last={drop_last} and {self.world} processes"
            raise ValueError(f"batch_size: {text} leaves no batch of {images} images")

    dataset: Any  # a subclass' data set

    @property
    def device(self) -> torch.device:
        """The device of the batches."""
        return self.dataset.device

    def described(self) -> dict[str, Any] | None:
        """Shape [C, H, W] of the images, and `mean` and `std` per channel by which pixels in [0, 1] are normalised."""
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
        """Images in batch i, all ranks' parts together."""
        last = i == len(self) - 1 and not self.drop_last
        return self.images - i * self.batch_size if last else self.batch_size

    def rows(self, i: int) -> slice:
        """The place of this rank's part of batch i in the epoch's permutation."""
        first, size = i * self.batch_size, self.size(i)
        return slice(first + size * self.rank // self.world, first + size * (self.rank + 1) // self.world)

    def weight(self, i: int) -> float:
        """W * B_rank / B: times this, the mean over ranks of means over their parts is the mean over batch i."""
        rows = self.rows(i)
        return self.world * (rows.stop - rows.start) / self.size(i)

    def whole(self) -> Self:
        """These batches for one process, undivided."""
        batches = copy(self)
        batches.rank, batches.world = 0, 1
        return batches

    def in_order(self) -> list[slice]:
        """This rank's part of each batch of all images in their order; none is left out, with `drop_last` neither."""
        every = copy(self)
        every.drop_last = False
        return [every.rows(i) for i in range(len(every))]

    def place(self, epoch: int, start: int) -> tuple[int, int]:
        """A place in training, checked: epoch `epoch` (from 0), batch number `start` of it (its end included)."""
        epoch, start = checks.integer("epoch", epoch, least=0), checks.integer("start", start, least=0)
        if start > len(self):
            raise ValueError(f"start: expected at most {len(self)}, the batches of an epoch, got {start}")
        return epoch, start
