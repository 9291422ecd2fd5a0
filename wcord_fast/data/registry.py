"""Data sets by name, and batches of them."""

from __future__ import annotations

import os

from ..ops import checks
from . import digits, image_folder, lazy_folder
from .batches import TestBatches, TrainBatches
from .cifar import IMAGE_SIZE as CIFAR_SIZE
from .cifar10 import CIFAR10
from .cifar100 import CIFAR100
from .dataset import Dataset
from .lazy_batches import LazyBatches
from .lazy_folder import LazyFolder

CIFARS = {kind.name: kind for kind in (CIFAR10, CIFAR100)}
IN_MEMORY = ("digits", *CIFARS, "folder")
NAMES = (*IN_MEMORY, "imagenet")


def names() -> tuple[str, ...]:
    """The data sets that `load` knows."""
    return NAMES


def held_names() -> tuple[str, ...]:
    """Those that are held in memory, each a `Dataset`; the others are `LazyFolder`s."""
    return IN_MEMORY


def load(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    limit_train: int | None = None,
    channels: int = 3,
    test_fraction: float = 0.2,
    skip_corrupt: bool = False,
) -> Dataset | LazyFolder:
    """A data set, on the CPU (`.to(device)` moves it).

    Args:
        name: any case:
            "digits": scikit-learn's 8x8 digits, embedded, one channel, 16x16 by default.
            "cifar10", "cifar100": the original python version, packed or unpacked, or an .npz, see `data.cifar`.
            "folder": any folder of images, held in memory at one size, see `data.image_folder`.
            "imagenet": ImageNet, or any other folder with train/ and val/, decoded batch by batch with random resized
            crops, see `data.lazy_folder` and `data.lazy_batches`.
        data_dir: folder (or file) with the data; CIFAR is looked for in "data" by default, "folder" and "imagenet"
            need it, "digits" does not use it.
        image_size: height and width of the images; default 16 for "digits", 224 for "imagenet", 32 for the others.
            CIFAR has 32 only.
        limit_train: keep this many training images, every class in proportion, always the same ones.
        channels: "folder" only: 3 (colour) or 1 (grey).
        test_fraction: "folder" only: the share set aside for testing where there is no test folder.
        skip_corrupt: "folder" and "imagenet" only: go on without the image files that cannot be read, which are told
            in a warning and listed in `skipped` of the result. "imagenet" decodes all files once to find them.

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
    elif key in CIFARS:
        if image_size not in (None, CIFAR_SIZE):
            raise ValueError(f"image_size: {CIFARS[key].title} is {CIFAR_SIZE}x{CIFAR_SIZE}, got {image_size}")
        found = CIFARS[key].load(data_dir)
    elif data_dir is None:
        raise ValueError(f"data_dir: the data set {key!r} needs the folder of images (--data-dir DIR), got None")
    elif key == "imagenet":
        found = lazy_folder.load(data_dir, image_size, skip_corrupt=skip_corrupt)
    else:
        found = image_folder.load(
            data_dir,
            32 if image_size is None else image_size,
            channels=channels,
            test_fraction=test_fraction,
            skip_corrupt=skip_corrupt,
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
