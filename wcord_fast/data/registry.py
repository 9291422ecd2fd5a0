"""Data sets by name, and batches of them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

from ..dotted import is_path, qualified, resolve
from ..ops import checks
from . import digits, image_folder, lazy_folder
from .batches import TestBatches, TrainBatches
from .cifar10 import CIFAR10
from .cifar100 import CIFAR100
from .dataset import Dataset
from .lazy_batches import LazyBatches
from .lazy_folder import LazyFolder
from .sources import Loader, Source

SOURCES: dict[str, Source] = {
    "digits": Source(digits.load, image_size=digits.IMAGE_SIZE, config="digits", positive="8"),
    "cifar10": Source(CIFAR10.load, config="cifar10", train_images=50_000),
    "cifar100": Source(CIFAR100.load, config="cifar100_resnet32x4_resnet8x4", train_images=50_000),
    "folder": Source(image_folder.load, needs_dir=True),
    "imagenet": Source(
        lazy_folder.load,
        held=False,
        needs_dir=True,
        image_size=lazy_folder.IMAGE_SIZE,
        config="imagenet_resnet34_resnet18",
        train_images=1_281_167,
    ),
}


def names() -> tuple[str, ...]:
    """The names of the data sets."""
    return tuple(SOURCES)


def held_names() -> tuple[str, ...]:
    """The names of data sets that are held in memory, each a `Dataset`; the others are `LazyFolder`s."""
    return tuple(name for name, source in SOURCES.items() if source.held)


def register(name: str, **fields: Any) -> Callable[[Loader], Loader]:
    """A decorator that makes a function that loads a data set selectable by name, here and in the command.

        @data.register("mine", image_size=64)
        def load(data_dir=None, image_size=None) -> data.Dataset: ...

    The command finds it by its dotted path: `wcord-fast distill --data my_package.my_module.load --data-dir DIR`.

    Args:
        name: lower-case letters, digits and "_".
        **fields: fields of `Source`.
    Raises:
        ValueError: the name is taken or malformed, or a field is out of range.
        TypeError: no such field, a field of another type, or no function.
    """

    def decorate(load: Loader) -> Loader:
        if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ValueError(f"name: expected lower-case letters, digits and '_', got {name!r}")
        present = SOURCES.get(name)
        if present is not None and qualified(present.load) != qualified(load):  # a reloaded module replaces its own
            raise ValueError(f"name: {name!r} is taken by {qualified(present.load)}")
        SOURCES[name] = Source(load, **fields)
        return load

    return decorate


def spelled(name: str, argument: str = "name") -> str:
    """A data set's canonical name, or the dotted path of a user's function, which is imported.

    Raises (the message begins with `argument`):
        ValueError: an unknown name (the nearest is suggested), or a dotted path that leads to no function.
        TypeError: not a str.
    """
    if not isinstance(name, str):
        raise TypeError(f"{argument}: expected a str, got {type(name).__name__}")
    key = name.strip()
    if not is_path(key):
        return checks.choice(argument, key.lower().replace("-", ""), SOURCES)
    if key not in SOURCES:
        load = resolve(argument, key)
        registered = next((source for source in SOURCES.values() if source.load == load), None)
        SOURCES[key] = registered if registered is not None else Source(load)
    return key


def source(name: str, argument: str = "name") -> Source:
    """The `Source` of a data set, by its name or dotted path. Raises as `spelled` does."""
    return SOURCES[spelled(name, argument)]


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
            A name of `register`, or the dotted path of a function that loads a data set.
        data_dir: folder (or file) with the data; CIFAR is looked for in "data" by default, "folder" and "imagenet"
            need it, "digits" does not use it.
        image_size: height and width of the images; default 16 for "digits", 224 for "imagenet", 32 for the others.
            CIFAR has 32 only.
        limit_train: keep this many training images, every class in proportion; the choice is fixed.
        channels: "folder" only: 3 (colour) or 1 (grey).
        test_fraction: "folder" only: the fraction of the images that is kept for testing if there is no test folder.
        skip_corrupt: "folder" and "imagenet" only: leave out image files that cannot be read. A warning names them, and
            `skipped` of the result lists them. "imagenet" decodes all files once to find them.

    Raises:
        FileNotFoundError: the data are not there; the message gives the commands that fix it.
        ValueError: an unknown name, a corrupt file (named), an option out of range, or one that the data set does not
            take.
        TypeError: a user's function that returns no `Dataset`; an option of another type.
    """
    key = spelled(name)
    checks.boolean("skip_corrupt", skip_corrupt)
    result = SOURCES[key].read(
        key,
        data_dir=data_dir,
        image_size=image_size,
        channels=channels,
        test_fraction=test_fraction,
        skip_corrupt=skip_corrupt,
    )
    return result if limit_train is None else result.limit_train(limit_train)


def train_batches(
    dataset: Dataset | LazyFolder,
    batch_size: int,
    *,
    seed: int,
    channels_last: bool = False,
    part: tuple[int, int] = (0, 1),
    transforms: str | None = None,
) -> TrainBatches | LazyBatches:
    """Shuffled, augmented batches by epoch.

    Args:
        dataset, batch_size, seed, channels_last, part: see `TrainBatches`.
        transforms: transforms of every image, such as "v2:RandAugment(num_ops=2)" of torchvision, or the dotted path of
            a function uint8 [C, H, W] -> uint8 [C, H, W]; see `data.transforms.Transforms`.
    """
    batches: Any = LazyBatches if isinstance(dataset, LazyFolder) else TrainBatches
    return batches(dataset, batch_size, seed=seed, channels_last=channels_last, part=part, transforms=transforms)


def test_batches(
    dataset: Dataset | LazyFolder, batch_size: int, *, channels_last: bool = False
) -> TestBatches | LazyBatches:
    """The test images in their order."""
    if isinstance(dataset, LazyFolder):
        return LazyBatches(dataset, batch_size, seed=None, channels_last=channels_last)
    return TestBatches(dataset, batch_size, channels_last=channels_last)
