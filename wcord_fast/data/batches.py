"""Batches of a data set that already lies on the device."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Self, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..ops import checks
from .augment import Normalise, crop_flip
from .dataset import Dataset

# images [B, C, H, W] normalised, labels int64 [B], index int64 [B] (rows in the training or test set)
Batch: TypeAlias = tuple[Tensor, Tensor, Tensor]


class Parts:
    """Batches of which each of `world` ranks takes a part: consecutive, and as equal as can be.

    A last batch of fewer than `world` images is left out.
    """

    def __init__(self, images: int, batch_size: int, part: tuple[int, int], drop_last: bool = False) -> None:
        self.images, self.drop_last = images, drop_last
        self.batch_size = checks.integer("batch_size", batch_size, least=1)
        self.rank, self.world = part
        if self.batch_size < self.world:
            raise ValueError(
                f"batch_size: expected at least one image for each of {self.world} processes, got {batch_size}"
            )

    def __len__(self) -> int:
        """Batches per epoch."""
        whole, rest = divmod(self.images, self.batch_size)
        return whole + (rest >= self.world and not self.drop_last)

    def weight(self, i: int) -> float:
        """W * B_rank / B: times this, the mean over ranks of means over their parts is the mean over batch i."""
        rows, size = self.rows(i), min(self.batch_size, self.images - i * self.batch_size)
        return self.world * (rows.stop - rows.start) / size

    def whole(self) -> Self:
        """The same batches, undivided."""
        batches = copy(self)
        batches.rank, batches.world = 0, 1
        return batches

    def rows(self, i: int) -> slice:
        """Where in the epoch's permutation this rank's part of batch i is."""
        first = i * self.batch_size
        size = min(self.batch_size, self.images - first)
        return slice(first + size * self.rank // self.world, first + size * (self.rank + 1) // self.world)

    def in_order(self) -> list[slice]:
        """This rank's part of each batch of all images in their order, none left out.

        A rank without a part takes the batch's last image too, so that all ranks have as many batches.
        """
        parts = []
        for first in range(0, self.images, self.batch_size):
            size = min(self.batch_size, self.images - first)
            begin, end = (first + size * r // self.world for r in (self.rank, self.rank + 1))
            parts.append(slice(begin, end) if begin < end else slice(first + size - 1, first + size))
        return parts

    def place(self, epoch: int, start: int) -> tuple[int, int]:
        """A place in training, checked: epoch `epoch` (from 0), batch number `start` of it (its end included)."""
        epoch, start = checks.integer("epoch", epoch, least=0), checks.integer("start", start, least=0)
        if start > len(self):
            raise ValueError(f"start: expected at most {len(self)}, the batches of an epoch, got {start}")
        return epoch, start


class TrainBatches(Parts):
    """Shuffled, augmented training batches: random crop of the zero-padded image, then a random mirror.

    The shuffle and every crop and mirror are functions of (seed, epoch), drawn on the host once per epoch:
    the same on every device, and a step needs no synchronisation. Each epoch is a fresh permutation of all
    rows.

    Args:
        dataset: where its tensors lie, the batches are made.
        batch_size: images per batch; the last batch is smaller if it does not divide the set.
        seed: a non-negative int.
        padding: crops shift by up to this many pixels each way, black beyond the edge; default
            `dataset.padding`.
        flip: mirror left-right with probability 1/2; default `dataset.flip`.
        drop_last: leave out a smaller last batch.
        dtype: of the images: float32, bfloat16, float16 or float64.
        channels_last: memory format of the images.
        part: (rank, world): of every batch take this rank's part only, see `Parts`.

    Raises:
        ValueError: an option out of range, or drop_last with fewer images than one batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        seed: int,
        padding: int | None = None,
        flip: bool | None = None,
        drop_last: bool = False,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.dataset = dataset
        super().__init__(len(dataset.train_labels), batch_size, part, drop_last)
        self.seed = checks.integer("seed", seed, least=0)
        self.padding = checks.integer("padding", dataset.padding if padding is None else padding, least=0)
        self.flip = dataset.flip if flip is None else bool(flip)
        self.normalise = Normalise(dataset.mean, dataset.std, dtype, channels_last, dataset.device)
        if len(self) == 0:
            told = f"{batch_size} with drop_last={drop_last} and {self.world} processes"
            raise ValueError(f"batch_size: {told} leaves no batch of {self.images} training images")

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch `epoch` (from 0), from batch number `start` on.

        Batch i is the same whatever `start` is, so a run resumes in mid-epoch exactly.
        """
        return self._batches(*self.place(epoch, start))

    def once(self) -> Iterator[Batch]:
        """Every training image once, in their order and not augmented; this rank's part of it, see `in_order`."""
        data = self.dataset
        for at in self.in_order():
            index = torch.arange(at.start, at.stop, device=data.device)
            yield self.normalise(data.train_images[at]), data.train_labels[at], index

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        data, device = self.dataset, self.dataset.device
        n = len(data.train_labels)
        rng = np.random.default_rng((self.seed, epoch))
        order = torch.from_numpy(rng.permutation(n)).to(device)  # int64 [N]
        shift = torch.from_numpy(rng.integers(-self.padding, self.padding + 1, size=(n, 2))).to(device)  # [N, 2]
        mirror = torch.from_numpy(rng.random(n) < 0.5).to(device) if self.flip else None  # bool [N]
        for i in range(start, len(self)):
            at = self.rows(i)
            index = order[at]
            pixels = crop_flip(data.train_images, index, shift[at], None if mirror is None else mirror[at])
            yield self.normalise(pixels), data.train_labels[index], index


class TestBatches:
    """The test images in their order, normalised, not augmented. Arguments as for `TrainBatches`."""

    __test__ = False  # the name starts like a test's, to pytest

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int = 500,
        *,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> None:
        self.dataset = dataset
        self.batch_size = checks.integer("batch_size", batch_size, least=1)
        self.normalise = Normalise(dataset.mean, dataset.std, dtype, channels_last, dataset.device)

    def __len__(self) -> int:
        return -(-len(self.dataset.test_labels) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        data = self.dataset
        for first in range(0, len(data.test_labels), self.batch_size):
            at = slice(first, first + self.batch_size)
            labels = data.test_labels[at]
            index = torch.arange(first, first + len(labels), device=data.device)
            yield self.normalise(data.test_images[at]), labels, index
