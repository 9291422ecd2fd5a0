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
from .transforms import Transforms


class TrainBatches(Parts):
    """Shuffled, augmented training batches: random crop of the zero-padded image, then a random mirror.

    The shuffle and every crop, mirror and transform are functions of (seed, epoch), drawn on the host once per epoch:
    the same on every device, and a step needs no synchronisation. Each epoch is a fresh permutation of all
    rows.

    Args:
        dataset: where its tensors lie, the batches are made.
        batch_size: images per batch; if it does not divide the set, an epoch's last batch is smaller, or larger where
            only one image (per rank) would be left for it, see `Parts`.
        seed: a non-negative int.
        padding: crops shift by up to this many pixels each way, black beyond the edge; default
            `dataset.padding`.
        flip: mirror left-right with probability 1/2; default `dataset.flip`.
        drop_last: leave out the images after the last whole batch.
        dtype: of the images: float32, bfloat16, float16 or float64.
        channels_last: memory format of the images.
        part: (rank, world): of every batch take this rank's part only, see `Parts`.
        transforms: of every image after crop and mirror, on the CPU.

    Raises:
        ValueError: an option out of range, or no batch at all, as by drop_last with fewer images than one batch.
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
        transforms: Transforms | None = None,
    ) -> None:
        self.dataset, self.transforms = dataset, transforms
        super().__init__(len(dataset.train_labels), batch_size, part, drop_last)
        self.seed = checks.integer("seed", seed, least=0)
        self.padding = checks.integer("padding", dataset.padding if padding is None else padding, least=0)
        self.flip = dataset.flip if flip is None else bool(flip)
        self.normalise = Normalise(dataset.mean, dataset.std, dtype, channels_last, dataset.device)

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
            yield Batch(self.normalise(data.train_images[at]), data.train_labels[at], index)

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        data, device = self.dataset, self.dataset.device
        n = len(data.train_labels)
        rng = np.random.default_rng((self.seed, epoch))
        order = torch.from_numpy(rng.permutation(n)).to(device)  # int64 [N]
        shift = torch.from_numpy(rng.integers(-self.padding, self.padding + 1, size=(n, 2))).to(device)  # [N, 2]
        mirror = torch.from_numpy(rng.random(n) < 0.5).to(device) if self.flip else None  # bool [N]
        for i in range(start, len(self)):
            at = self.rows(i)
            yield self._batch(order[at], shift[at], None if mirror is None else mirror[at], epoch)

    def _batch(self, index: Tensor, shift: Tensor, mirror: Tensor | None, epoch: int) -> Batch:
        """Made apart from the generator, which then holds nothing of it while the caller works with it."""
        data = self.dataset
        images = crop_flip(data.train_images, index, shift, mirror)
        if self.transforms is not None:
            images = self.transforms.batch(images, index, (self.seed, epoch))
        return Batch(self.normalise(images), data.train_labels[index], index)


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
        for first in range(0, len(self.dataset.test_labels), self.batch_size):
            yield self._batch(first)

    def _batch(self, first: int) -> Batch:
        data, at = self.dataset, slice(first, first + self.batch_size)
        labels = data.test_labels[at]
        index = torch.arange(first, first + len(labels), device=data.device)
        return Batch(self.normalise(data.test_images[at]), labels, index)
