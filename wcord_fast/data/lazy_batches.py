"""Batches of a `LazyFolder`: worker processes decode the files of a batch when its turn comes.

Training: a random crop of 8 to 100 % of the area and aspect 3:4 to 4:3, resized to a square, mirrored at random.
Testing: the middle of the image, its shorter side resized to 256/224 of the square's. A crop is a function of (seed,
epoch, row), so batches do not depend on the number of workers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ..batch import Batch
from ..ops import checks
from .augment import Normalise
from .decode import Unreadable, read, read_all, unreadable_message
from .lazy_folder import LazyFolder
from .parts import Parts
from .skipping import ADVICE
from .transforms import Transforms, parsed

MARGIN = 256 / 224  # ratio of the test image's shorter side to the crop's
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)
WORKERS = max(1, min(16, (os.cpu_count() or 2) - 1))
PATIENCE = 60.0  # seconds of search for more unreadable files after the first


class _Images(TorchDataset):
    """Row -> (uint8 [3, S, S], row); with `seed` a random crop of this epoch, transformed, else the middle."""

    def __init__(
        self, files: tuple[str, ...], size: int, seed: tuple[int, int] | None, transforms: Transforms | None
    ) -> None:
        # Workers share the pages of one array; those of a million Python strings would be copied with reference counts.
        self.files, self.size, self.seed = np.array([os.fsencode(f) for f in files]), size, seed
        self.transforms = transforms

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        image = read(os.fsdecode(self.files[row]))
        if self.seed is None:
            crop = middle(image, self.size)
        else:
            crop = random_crop(image, self.size, np.random.default_rng((*self.seed, row)))
        pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1)
        if self.seed is not None and self.transforms is not None:
            pixels = self.transforms(pixels, (*self.seed, row))
        return pixels, row


def random_crop(image: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """A random crop of the image, as this module describes, as a square of `size` pixels, mirrored or not."""
    width, height = image.size
    mirror = rng.random() < 0.5
    w, h = min(width, height), min(width, height)  # if no draw fits: the largest square in the middle
    x, y = (width - w) // 2, (height - h) // 2
    for _ in range(10):
        area = width * height * rng.uniform(*AREA)
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        drawn_w, drawn_h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < drawn_w <= width and 0 < drawn_h <= height:
            w, h = drawn_w, drawn_h
            x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            break
    square = image.resize((size, size), Image.Resampling.BILINEAR, box=(x, y, x + w, y + h))
    return square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror else square


def middle(image: Image.Image, size: int) -> Image.Image:
    """The middle of the image as a square of `size` pixels, its shorter side resized to MARGIN times that."""
    width, height = image.size
    scale = round(size * MARGIN) / min(width, height)
    width, height = max(size, round(width * scale)), max(size, round(height * scale))
    x, y = (width - size) // 2, (height - size) // 2
    return image.resize((width, height), Image.Resampling.BILINEAR).crop((x, y, x + size, y + size))


class _BatchSampler:
    """A batch sampler: the rows `order[batch]` of each batch, listed when its turn comes."""

    def __init__(self, batches: list[slice], order: np.ndarray) -> None:
        self.batches, self.order = batches, order

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return (self.order[batch].tolist() for batch in self.batches)


class LazyBatches(Parts):
    """Batches of a `LazyFolder`: for training `epoch(e)`, shuffled and augmented; for testing iterate over it.

    Args:
        dataset: the image folder.
        batch_size: images per batch; the last may be smaller, or in training slightly larger, see `Parts`.
        seed: seed of shuffle and crops; None: the test images in their order.
        workers: processes that decode; 0 decodes in this one.
        channels_last: memory format of the images.
        part: (rank, world) of training batches, see `Parts`.
        transforms: transforms of every training image after crop and mirror, in the workers; a str is that of
            `Transforms`.
    """

    def __init__(
        self,
        dataset: LazyFolder,
        batch_size: int,
        *,
        seed: int | None,
        workers: int = WORKERS,
        channels_last: bool = False,
        part: tuple[int, int] = (0, 1),
        transforms: Transforms | str | None = None,
    ) -> None:
        self.dataset, self.transforms = dataset, parsed(transforms)
        images = len(dataset.test_labels if seed is None else dataset.train_labels)
        super().__init__(images, batch_size, part, least=1 if seed is None else 2)
        self.seed = None if seed is None else checks.integer("seed", seed, least=0)
        self.workers = checks.integer("workers", workers, least=0)
        self.normalise = Normalise(dataset.mean, dataset.std, torch.float32, channels_last, dataset.device)
        self.labels = (dataset.test_labels if seed is None else dataset.train_labels).to(dataset.device)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The training batches of epoch `epoch` (from 0), from batch number `start` on."""
        if self.seed is None:
            raise ValueError("seed: expected a number for training batches, got None")
        epoch, start = self.checked_position(epoch, start)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.labels))
        return self._batches(self.dataset.train_files, _BatchSampler(self._slices(start), order), (self.seed, epoch))

    def once(self) -> Iterator[Batch]:
        """This rank's part of all training images, in their order and not augmented, see `in_order`."""
        if self.seed is None:
            raise ValueError("seed: expected a number for training batches, got None")
        sampler = _BatchSampler(self.in_order(), np.arange(len(self.labels)))
        return self._batches(self.dataset.train_files, sampler, None)

    def __iter__(self) -> Iterator[Batch]:
        if self.seed is not None:
            raise TypeError("training batches come by epoch: iterate over epoch(0), epoch(1), ...")
        return self._batches(self.dataset.test_files, _BatchSampler(self._slices(0), np.arange(len(self.labels))), None)

    def _slices(self, start: int) -> list[slice]:
        return [self.rows(i) for i in range(start, len(self))]

    def _batches(self, files: tuple[str, ...], rows: _BatchSampler, seed: tuple[int, int] | None) -> Iterator[Batch]:
        data = self.dataset
        loader = DataLoader(
            _Images(files, data.image_size[0], seed, self.transforms),
            batch_sampler=rows,
            num_workers=min(self.workers, len(rows)),
            pin_memory=data.device.type == "cuda",
            generator=torch.Generator(),  # so that the loader draws its base seed without torch's own generator
        )
        for pixels, index in self._with_errors_named(loader):
            yield self._batch(pixels, index)

    def _batch(self, pixels: Tensor, rows: Tensor) -> Batch:
        device = self.dataset.device
        index = rows.to(device, non_blocking=True)
        return Batch(self.normalise(pixels.to(device, non_blocking=True)), self.labels[index], index)

    def _with_errors_named(self, loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
        """The items of `loader`. If a file cannot be read, the error names all found in PATIENCE seconds."""
        try:
            yield from loader
        except OSError as error:  # a worker's error has a traceback in its text
            raise OSError(str(error).splitlines()[-1]) from error
        except Unreadable as error:
            files = [*self.dataset.train_files, *self.dataset.test_files]
            unreadable, tried = read_all(files, "RGB", lambda i, image: None, PATIENCE)
            # A worker's error has a traceback in its text.
            message = str(error).splitlines()[-1].partition(f"{Unreadable.__name__}: ")
            reasons = list(dict.fromkeys([message[2] or message[0], *unreadable.values()]))
            raise ValueError(f"{unreadable_message(reasons, tried, len(files))}. {ADVICE}") from None
