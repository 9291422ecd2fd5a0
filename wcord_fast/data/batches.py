"""Batches of a data set that already lies on the device."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..batch import Batch
from ..ops import checks
from .augment import Normalise, crop_flip
from .dataset import Dataset
from .parts import Parts
from .transforms import Transforms, parsed


class TrainBatches(Parts):
    """Shuffled, augmented training batches: random crop of the zero-padded image, then a random mirror.

    The shuffle and every crop, mirror and transform are functions of (seed, epoch), equal on every device. They are
    drawn on the host once per epoch, so a step needs no synchronisation. Each epoch is a new permutation of all rows.

    Args:
        dataset: the images; batches are made on its device.
        batch_size: images per batch; if it does not divide the set, an epoch's last batch is smaller, or larger where
            only one image (per rank) would be left for it, see `Parts`.
        seed: a non-negative int.
        padding: crops shift by up to this many pixels each way, black beyond the edge; default
            `dataset.padding`.
        flip: mirror left-right with probability 1/2; default `dataset.flip`.
        drop_last: leave out the images after the last whole batch.
        dtype: dtype of the images: float32, bfloat16, float16 or float64.
        channels_last: memory format of the images.
        part: (rank, world): take only this rank's part of every batch, see `Parts`.
        transforms: transforms of every image after crop and mirror, on the CPU; a str is that of `Transforms`.

    Raises:
        TypeError, ValueError: a wrong argument, or no batch at all, as with drop_last and fewer images than batch_size.
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
        transforms: Transforms | str | None = None,
    ) -> None:
        self.dataset, self.transforms = dataset, parsed(transforms)
        super().__init__(len(dataset.train_labels), batch_size, part, drop_last)
        self.seed = checks.integer("seed", seed, least=0)
        self.padding = checks.integer("padding", dataset.padding if padding is None else padding, least=0)
        self.flip = checks.boolean("flip", dataset.flip if flip is None else flip)
        self.normalise = Normalise(dataset.mean, dataset.std, dtype, channels_last, dataset.device)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch `epoch` (from 0), from batch number `start` on.

        Batch i does not depend on `start`, so a run resumes in mid-epoch exactly.
        """
        return self._batches(*self.checked_position(epoch, start))

    def once(self) -> Iterator[Batch]:
        """This rank's part of all training images, in their order and not augmented, see `in_order`."""
        data = self.dataset
        for rows in self.in_order():
            index = torch.arange(rows.start, rows.stop, device=data.device)
            yield Batch(self.normalise(data.train_images[rows]), data.train_labels[rows], index)

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        data, device = self.dataset, self.dataset.device
        n = len(data.train_labels)
        rng = np.random.default_rng((self.seed, epoch))
        order = torch.from_numpy(rng.permutation(n)).to(device)  # int64 [N]
        shift = torch.from_numpy(rng.integers(-self.padding, self.padding + 1, size=(n, 2))).to(device)  # [N, 2]
        mirror = torch.from_numpy(rng.random(n) < 0.5).to(device) if self.flip else None  # bool [N]
        for i in range(start, len(self)):
            rows = self.rows(i)
            yield self._batch(order[rows], shift[rows], None if mirror is None else mirror[rows], epoch)

    def _batch(self, index: Tensor, shift: Tensor, mirror: Tensor | None, epoch: int) -> Batch:
        """Separate from the generator, which would hold a batch's tensors while the caller uses them."""
        data = self.dataset
        images = crop_flip(data.train_images, index, shift, mirror)
        if self.transforms is not None:
            images = self.transforms.batch(images, index, (self.seed, epoch))
        return Batch(self.normalise(images), data.train_labels[index], index)


class TestBatches:
    """The test images in their order, normalised, not augmented. Arguments as for `TrainBatches`."""

    __test__ = False  # else pytest takes the class for tests, by its name

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
        for first in range(0, len(self.dataset.test_labels), self.batch_size):
            yield self._batch(first)

    def _batch(self, first: int) -> Batch:
        data, rows = self.dataset, slice(first, first + self.batch_size)
        labels = data.test_labels[rows]
        index = torch.arange(first, first + len(labels), device=data.device)
        return Batch(self.normalise(data.test_images[rows]), labels, index)
