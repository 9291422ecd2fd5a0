"""Data sets by name, and batches of them."""

from __future__ import annotations

import os

from ..ops import checks
from . import cifar100, digits, image_folder, lazy_folder
from .batches import TestBatches, TrainBatches
from .dataset import Dataset
from .lazy_folder import LazyBatches, LazyFolder

NAMES = ("digits", "cifar100", "folder", "imagenet")


def names() -> tuple[str, ...]:
    """The data sets that `load` knows."""
    return NAMES


def load(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    limit_train: int | None = None,
    channels: int = 3,
    test_fraction: float = 0.2,
) -> Dataset | LazyFolder:
    """A data set, on the CPU (`.to(device)` moves it).

    Args:
        name: any case:
            "digits": scikit-learn's 8x8 digits, embedded, one channel, 16x16 by default.
            "cifar100": the original python pickles or an .npz, see `data.cifar100`.
            "folder": any folder of images, held in memory at one size, see `data.image_folder`.
            "imagenet": ImageNet, or any other folder with train/ and val/, decoded batch by batch with random resized
            crops, see `data.lazy_folder`.
        data_dir: folder (or .npz file) with the data; "cifar100" looks in "data" by default, "folder" and "imagenet"
            need it, "digits" does not use it.
        image_size: height and width of the images; default 16 for "digits", 224 for "imagenet", 32 for the others.
            CIFAR-100 has 32 only.
        limit_train: keep this many training images, every class in proportion, always the same ones.
        channels: "folder" only: 3 (colour) or 1 (grey).
        test_fraction: "folder" only: the share set aside for testing where there is no test folder.

    Raises:
        FileNotFoundError: the data are not there; the message gives the commands that fix it.
        ValueError: an unknown name, a corrupt file (named), an option out of range.
    """
    if not isinstance(name, str):
        raise TypeError(f"name: expected a str, got {type(name).__name__}")
    key = checks.choice("name", name.strip().lower().replace("-", ""), NAMES)
    found: Dataset | LazyFolder
    if key == "digits":
        found = digits.load(image_size)
    elif key == "cifar100":
        if image_size not in (None, cifar100.IMAGE_SIZE):
            raise ValueError(f"image_size: CIFAR-100 is {cifar100.IMAGE_SIZE}x{cifar100.IMAGE_SIZE}, got {image_size}")
        found = cifar100.load(data_dir)
    elif data_dir is None:
        raise ValueError(f"data_dir: the data set {key!r} needs the folder of images, got None")
    elif key == "imagenet":
        found = lazy_folder.load(data_dir, image_size)
    else:
        found = image_folder.load(
            data_dir, 32 if image_size is None else image_size, channels=channels, test_fraction=test_fraction
        )
    return found if limit_train is None else found.limit_train(limit_train)


def train_batches(
    dataset: Dataset | LazyFolder,
    batch_size: int,
    *,
    seed: int,
    channels_last: bool = False,
    part: tuple[int, int] = (0, 1),
) -> TrainBatches | LazyBatches:
    """Shuffled, augmented batches by epoch; `part` as for `TrainBatches`."""
    kind = LazyBatches if isinstance(dataset, LazyFolder) else TrainBatches
    return kind(dataset, batch_size, seed=seed, channels_last=channels_last, part=part)  # type: ignore[arg-type]


def test_batches(
    dataset: Dataset | LazyFolder, batch_size: int, *, channels_last: bool = False
) -> TestBatches | LazyBatches:
    """The test images in their order."""
    if isinstance(dataset, LazyFolder):
        return LazyBatches(dataset, batch_size, seed=None, channels_last=channels_last)
    return TestBatches(dataset, batch_size, channels_last=channels_last)
