"""Image folders too large for memory: files are decoded when a batch needs them, see `lazy_batches`.

    root/train/<class>/*.JPEG and root/val/<class>/*.JPEG, as ImageNet is unpacked, or other usual names of splits, see
    `split_folders`

Only file names and labels are kept: some 100 bytes per image in place of its pixels.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor

from ..ops import checks
from . import split
from .decode import read_all
from .folders import class_names, display_name, existing_folder, list_images
from .skipping import require_all_classes, skip
from .split_folders import find_splits

IMAGE_SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as for published weights

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LazyFolder:
    """File names and labels of an image folder, with the attributes of `Dataset` that a training run reads.

    Attributes:
        name: name in logs and reports.
        train_files, test_files: paths.
        train_labels, test_labels: int64 [N] on the CPU.
        classes: class names, in label order.
        image_size: height and width of the batches' images.
        device: device of the batches.
        skipped: files of the set that could not be read and are left out.
    """

    name: str
    train_files: tuple[str, ...]
    test_files: tuple[str, ...]
    train_labels: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    device: torch.device
    skipped: tuple[str, ...] = ()

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
                digest.update(os.fsencode(os.path.basename(file)) + f":{_file_size(file)}\n".encode())
            digest.update(labels.numpy().tobytes())
        return digest.hexdigest()[:16]

    def to(self, device: torch.device | str) -> LazyFolder:
        """This data set with batches on `device`."""
        return replace(self, device=torch.device(device))

    def limit_train(self, n: int) -> LazyFolder:
        """This data set with `n` training images, every class in proportion; the choice is fixed."""
        if checks.integer("limit_train", n, least=1) > len(self.train_labels):
            raise ValueError(f"limit_train: expected at most the {len(self.train_labels)} training images, got {n}")
        return self._with_train_rows(split.stratified_rows(self.train_labels.numpy(), n))

    def unreadable(self, train: bool = True) -> tuple[str, ...]:
        """The files that cannot be read as images, which a warning names; all files are decoded, in threads.

        Args:
            train: False decodes the test images only.
        """
        files = [*(self.train_files if train else ()), *self.test_files]
        log.info("%s: decoding all of %d files", self.name, len(files))
        bad, _ = read_all(files, "RGB", lambda i, image: None)
        return skip(files, bad, allowed=True)

    def without(self, files: Collection[str]) -> LazyFolder:
        """This data set without `files`, which `skipped` of the result lists; later rows move up.

        Raises:
            ValueError: a class would have no training image left, or the test set none at all.
        """
        removed = set(files)
        train, test = (
            np.flatnonzero([file not in removed for file in paths]) for paths in (self.train_files, self.test_files)
        )
        require_all_classes(self.classes, self.train_labels[torch.from_numpy(train)], self.name)
        if not len(test):
            raise ValueError(f"{self.name}: no test image can be read")
        return replace(
            self._with_train_rows(train),
            test_files=tuple(self.test_files[row] for row in test),
            test_labels=self.test_labels[torch.from_numpy(test)],
            skipped=(*self.skipped, *files),
        )

    def _with_train_rows(self, rows: np.ndarray) -> LazyFolder:
        files = tuple(self.train_files[row] for row in rows)
        return replace(self, train_files=files, train_labels=self.train_labels[torch.from_numpy(rows)])


def _file_size(file: str) -> int:
    try:
        return os.path.getsize(file)
    except FileNotFoundError:  # a broken link, which is an error when a batch needs it
        return -1


def load(data_dir: str | os.PathLike[str], image_size: int | None = None, *, skip_corrupt: bool = False) -> LazyFolder:
    """The image folder at `data_dir`. Labels number the class folders in alphabetical order.

    Args:
        data_dir: see the top of this file.
        image_size: height and width of the batches' images; default 224.
        skip_corrupt: decode every file once now, which takes as long as an epoch without training, and go on without
            those that cannot be read. Otherwise nothing is decoded yet, and the first that a batch needs is an error.

    Raises:
        FileNotFoundError: data_dir is not a folder.
        ValueError: no training or no test folder in it, a class without images, a test class that is not in train.
    """
    size = checks.integer("image_size", IMAGE_SIZE if image_size is None else image_size, least=8)
    top = existing_folder(data_dir)
    train_dir, test_dir = find_splits(top)
    if test_dir is None:
        raise ValueError(f"data_dir: expected {top}/train and {top}/val, with one folder per class in each")
    classes = class_names(train_dir)
    train_files, train_labels = list_images(train_dir, classes)
    test_files, test_labels = list_images(test_dir, classes)
    result = LazyFolder(
        name=display_name(top.resolve().name),
        train_files=tuple(train_files),
        test_files=tuple(test_files),
        train_labels=train_labels,
        test_labels=test_labels,
        classes=classes,
        image_size=(size, size),
        device=torch.device("cpu"),
    )
    return result.without(result.unreadable()) if skip_corrupt else result
