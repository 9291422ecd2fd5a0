"""Batches of a `LazyFolder`: worker processes decode the files of a batch when its turn comes.

Training: a random crop of 8 to 100 % of the area and aspect 3:4 to 4:3, resized to a square, mirrored at random.
Testing: the shorter side resized to 256/224 of the square's, the middle cut out. Every crop is a function of (seed,
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
from .transforms import Transforms

MARGIN = 256 / 224  # of the test image's shorter side to the crop's
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)
WORKERS = max(1, min(16, (os.cpu_count() or 2) - 1))
PATIENCE = 60.0  # seconds in which other unreadable files are looked for, once one has been met


class _Images(TorchDataset):
    """Row -> (uint8 [3, S, S], row); with `seed` a random crop of this epoch, transformed, else the middle."""

    def __init__(
        self, files: tuple[str, ...], size: int, seed: tuple[int, int] | None, transforms: Transforms | None
    ) -> None:
        # One array: workers share its pages, which a million Python strings with their reference counts would not be.
        self.files, self.size, self.seed = np.array([os.fsencode(f) for f in files]), size, seed
        self.transforms = transforms

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        colour = read(os.fsdecode(self.files[row]))
        if self.seed is None:
            picked = middle(colour, self.size)
        else:
            picked = random_crop(colour, self.size, np.random.default_rng((*self.seed, row)))
        pixels = torch.from_numpy(np.array(picked)).permute(2, 0, 1)
        if self.seed is not None and self.transforms is not None:
            pixels = self.transforms(pixels, (*self.seed, row))
        return pixels, row


def random_crop(image: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """A random part of the image (see the top of this file) as a square of `size` pixels, mirrored or not."""
    width, height = image.size
    mirror = rng.random() < 0.5
    w, h = min(width, height), min(width, height)  # should no try fit: the largest square, in the middle
    x, y = (width - w) // 2, (height - h) // 2
    for _ in range(10):
        area = width * height * rng.uniform(*AREA)
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        tried_w, tried_h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < tried_w <= width and 0 < tried_h <= height:
            w, h = tried_w, tried_h
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


class _Rows:
    """The rows of batches that take these parts of an order, made when the loader asks for them."""

    def __init__(self, parts: list[slice], order: np.ndarray) -> None:
        self.parts, self.order = parts, order

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[list[int]]:
        return (self.order[part].tolist() for part in self.parts)


class LazyBatches(Parts):
    """Batches of a `LazyFolder`: for training `epoch(e)`, shuffled and augmented; for testing iterate over it.

    Args:
        dataset: the folder.
        batch_size: images per batch; the last may be smaller, or in training slightly larger, see `Parts`.
        seed: of shuffle and crops; None: the test images in their order.
        workers: processes that decode; 0 decodes in this one.
        channels_last: memory format of the images.
        part: (rank, world) of training batches, see `Parts`.
        transforms: of every training image after crop and mirror, in the workers.
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
        transforms: Transforms | None = None,
    ) -> None:
        self.dataset, self.transforms = dataset, transforms
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
        epoch, start = self.place(epoch, start)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.labels))
        return self._batches(self.dataset.train_files, _Rows(self._parts(start), order), (self.seed, epoch))

    def once(self) -> Iterator[Batch]:
        """Every training image once, in their order and not augmented; this rank's part of it, see `in_order`."""
        if self.seed is None:
            raise ValueError("seed: expected a number for training batches, got None")
        return self._batches(self.dataset.train_files, _Rows(self.in_order(), np.arange(len(self.labels))), None)

    def __iter__(self) -> Iterator[Batch]:
        if self.seed is not None:
            raise TypeError("training batches come by epoch: iterate over epoch(0), epoch(1), ...")
        return self._batches(self.dataset.test_files, _Rows(self._parts(0), np.arange(len(self.labels))), None)

    def _parts(self, start: int) -> list[slice]:
        return [self.rows(i) for i in range(start, len(self))]

    def _batches(self, files: tuple[str, ...], rows: _Rows, seed: tuple[int, int] | None) -> Iterator[Batch]:
        data = self.dataset
        loader = DataLoader(
            _Images(files, data.image_size[0], seed, self.transforms),
            batch_sampler=rows,
            num_workers=min(self.workers, len(rows)),
            pin_memory=data.device.type == "cuda",
            generator=torch.Generator(),  # the loader's draw of a base seed leaves torch's generator alone
        )
        for pixels, index in self._with_errors_named(loader):
            yield self._batch(pixels, index)

    def _batch(self, pixels: Tensor, rows: Tensor) -> Batch:
        device = self.dataset.device
        index = rows.to(device, non_blocking=True)
        return Batch(self.normalise(pixels.to(device, non_blocking=True)), self.labels[index], index)

    def _with_errors_named(self, loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
        """What `loader` gives. Where a file cannot be read, the error is of all such files that a look of some seconds
        finds: whoever repairs the set need not come back for each."""
        try:
            yield from loader
        except OSError as error:  # from a worker it comes with a traceback in its text
            raise OSError(str(error).splitlines()[-1]) from error
        except Unreadable as error:
            files = [*self.dataset.train_files, *self.dataset.test_files]
            bad, looked = read_all(files, "RGB", lambda i, image: None, PATIENCE)
            message = (
                str(error).splitlines()[-1].partition(f"{Unreadable.__name__}: ")
            )  # from a worker: with a traceback
            whys = list(dict.fromkeys([message[2] or message[0], *bad.values()]))
            raise ValueError(f"{unreadable_message(whys, looked, len(files))}. {ADVICE}") from None
