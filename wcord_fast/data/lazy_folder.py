"""Image folders too large for memory: files are decoded when a batch needs them, by worker processes.

    root/train/<class>/*.JPEG and root/val/<class>/*.JPEG (or root/test/), as ImageNet is unpacked

Training: a random crop of 8 to 100 % of the area and aspect 3:4 to 4:3, resized to a square, mirrored at random.
Testing: the shorter side resized to 256/224 of the square's, the middle cut out. Every crop is a function of (seed,
epoch, row), so batches do not depend on the number of workers. Only file names and labels are kept: some 100 bytes per
image in place of its pixels.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ..ops import checks
from . import split
from .augment import Normalise
from .batches import Batch, Parts
from .image_folder import class_names, existing, list_images, test_folder

IMAGE_SIZE = 224
MARGIN = 256 / 224  # of the test image's shorter side to the crop's
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, with which published weights are trained
WORKERS = max(1, min(16, (os.cpu_count() or 2) - 1))


@dataclass(frozen=True, eq=False)
class LazyFolder:
    """File names and labels of an image folder, with the attributes of `Dataset` that a training run reads.

    Attributes:
        name: for logs and reports.
        train_files, test_files: paths.
        train_labels, test_labels: int64 [N] on the CPU.
        classes: class names, in label order.
        image_size: height and width of the batches' images.
        device: where batches are put.
    """

    name: str
    train_files: tuple[str, ...]
    test_files: tuple[str, ...]
    train_labels: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    device: torch.device

    channels = 3
    mean, std = MEAN, STD

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of names, sizes on disk and labels (not of the pixels)."""
        digest = sha256()
        for files, labels in ((self.train_files, self.train_labels), (self.test_files, self.test_labels)):
            for file in files:
                digest.update(f"{Path(file).name}:{os.path.getsize(file)}\n".encode())
            digest.update(labels.numpy().tobytes())
        return digest.hexdigest()[:16]

    def to(self, device: torch.device | str) -> LazyFolder:
        """The same data with batches on `device`."""
        return replace(self, device=torch.device(device))

    def limit_train(self, n: int) -> LazyFolder:
        """The same data with `n` training images: every class in proportion, always the same ones."""
        if checks.integer("limit_train", n, least=1) > len(self.train_labels):
            raise ValueError(f"limit_train: expected at most the {len(self.train_labels)} training images, got {n}")
        rows = split.stratified_rows(self.train_labels.numpy(), n)
        files = tuple(self.train_files[row] for row in rows)
        return replace(self, train_files=files, train_labels=self.train_labels[torch.from_numpy(rows)])


def load(root: str | os.PathLike[str], image_size: int | None = None) -> LazyFolder:
    """The image folder at `root`. Labels number the class folders in alphabetical order; nothing is decoded yet.

    Raises:
        FileNotFoundError: root is not a folder.
        ValueError: no train/ or no val/ in it, a class without images, a test class that is not in train.
    """
    size = checks.integer("image_size", IMAGE_SIZE if image_size is None else image_size, least=8)
    top = existing(root)
    train_dir, test_dir = top / "train", test_folder(top)
    if not train_dir.is_dir() or test_dir is None:
        raise ValueError(f"data_dir: expected {top}/train and {top}/val, with one folder per class in each")
    classes = class_names(train_dir)
    train_files, train_labels = list_images(train_dir, classes)
    test_files, test_labels = list_images(test_dir, classes)
    return LazyFolder(
        name=top.resolve().name,
        train_files=tuple(map(str, train_files)),
        test_files=tuple(map(str, test_files)),
        train_labels=train_labels,
        test_labels=test_labels,
        classes=classes,
        image_size=(size, size),
        device=torch.device("cpu"),
    )


class _Images(TorchDataset):
    """Row -> (uint8 [3, S, S], row); with `seed` a random crop of this epoch, else the middle."""

    def __init__(self, files: tuple[str, ...], size: int, seed: tuple[int, int] | None) -> None:
        # One array: workers share its pages, which a million Python strings with their reference counts would not be.
        self.files, self.size, self.seed = np.array([os.fsencode(f) for f in files]), size, seed

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        path = os.fsdecode(self.files[row])
        try:
            with Image.open(path) as image:
                colour = image.convert("RGB")
                if self.seed is None:
                    picked = middle(colour, self.size)
                else:
                    picked = random_crop(colour, self.size, np.random.default_rng((*self.seed, row)))
        except Exception as error:  # a damaged image can raise nearly anything
            raise ValueError(f"{path}: cannot be read as an image: {error}") from error
        return torch.from_numpy(np.array(picked)).permute(2, 0, 1), row


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


class LazyBatches(Parts):
    """Batches of a `LazyFolder`: for training `epoch(e)`, shuffled and augmented; for testing iterate over it.

    Args:
        dataset: the folder.
        batch_size: images per batch; the last may be smaller.
        seed: of shuffle and crops; None: the test images in their order.
        workers: processes that decode; 0 decodes in this one.
        channels_last: memory format of the images.
        part: (rank, world) of training batches, see `Parts`.
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
    ) -> None:
        self.dataset = dataset
        super().__init__(len(dataset.test_labels if seed is None else dataset.train_labels), batch_size, part)
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
        return self._batches(self.dataset.train_files, self._rows(order, start), (self.seed, epoch))

    def once(self) -> Iterator[Batch]:
        """Every training image once, in their order and not augmented; this rank's part of it, see `in_order`."""
        if self.seed is None:
            raise ValueError("seed: expected a number for training batches, got None")
        return self._batches(self.dataset.train_files, [list(range(at.start, at.stop)) for at in self.in_order()], None)

    def __iter__(self) -> Iterator[Batch]:
        if self.seed is not None:
            raise TypeError("training batches come by epoch: iterate over epoch(0), epoch(1), ...")
        return self._batches(self.dataset.test_files, self._rows(np.arange(len(self.dataset.test_files)), 0), None)

    def _rows(self, order: np.ndarray, start: int) -> list[list[int]]:
        return [order[self.rows(i)].tolist() for i in range(start, len(self))]

    def _batches(
        self, files: tuple[str, ...], batches: list[list[int]], seed: tuple[int, int] | None
    ) -> Iterator[Batch]:
        data = self.dataset
        loader = DataLoader(
            _Images(files, data.image_size[0], seed),
            batch_sampler=batches,
            num_workers=min(self.workers, len(batches)),
            pin_memory=data.device.type == "cuda",
            generator=torch.Generator(),  # the loader's draw of a base seed leaves torch's generator alone
        )
        for pixels, rows in _in_one_line(loader):
            index = rows.to(data.device, non_blocking=True)
            yield self.normalise(pixels.to(data.device, non_blocking=True)), self.labels[index], index


def _in_one_line(loader: DataLoader) -> Iterator:
    """What `loader` gives; a worker's ValueError, which arrives with a traceback in its text, as it was."""
    try:
        yield from loader
    except ValueError as error:
        raise ValueError(str(error).splitlines()[-1].removeprefix("ValueError: ")) from None
