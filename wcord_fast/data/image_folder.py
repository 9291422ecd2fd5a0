"""Any images in one folder per class, decoded once into one uint8 tensor.

    root/train/<class>/*.png and root/test/<class>/*.png (or root/val/)
    root/<class>/*.png, or only root/train/ (then a fixed share of every class is set aside for testing)

The whole set is held in memory: N * channels * size^2 bytes. `lazy_folder` is for sets that are too large for that.
"""

from __future__ import annotations

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..ops import checks
from . import split
from .dataset import Dataset, channel_statistics

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
TEST_FOLDERS = ("test", "val")
MODES = {1: "L", 3: "RGB"}


def load(
    root: str | os.PathLike[str],
    image_size: int = 32,
    *,
    channels: int = 3,
    test_fraction: float = 0.2,
) -> Dataset:
    """The images under `root`. Labels number the class folders in alphabetical order.

    Args:
        root: see the top of this file for the two layouts.
        image_size: every image is resized to this height and width (bilinear with antialiasing, aspect not
            kept).
        channels: 3 (colour) or 1 (grey).
        test_fraction: the share of images set aside, every class in proportion, where there is no test
            folder.

    Raises:
        FileNotFoundError: root is not a folder.
        ValueError: no classes, a class without images, a test class that is not in train, an unreadable image
            (named), an option out of range.
    """
    checks.integer("image_size", image_size, least=8)
    checks.choice("channels", channels, tuple(MODES))
    if not 0 < checks.fraction("test_fraction", test_fraction) < 1:
        raise ValueError(f"test_fraction: expected a number inside (0, 1), got {test_fraction}")
    top = existing(root)
    train_dir, test_dir = top / "train", test_folder(top)
    if not train_dir.is_dir():
        if test_dir is not None:
            raise ValueError(f"data_dir: {test_dir} is there but {train_dir} is not")
        train_dir = top

    classes = class_names(train_dir)
    files, labels = list_images(train_dir, classes)
    images = _decode(files, image_size, MODES[channels])
    if test_dir is None:
        n_test = max(1, round(len(labels) * test_fraction))
        try:
            train, test = map(torch.from_numpy, split.stratified_split(labels.numpy(), n_test))
        except ValueError as error:
            raise ValueError(f"test_fraction: {test_fraction} of {len(labels)} images: {error}") from None
        test_images, test_labels = images[test], labels[test]
        images, labels = images[train], labels[train]
    else:
        test_files, test_labels = list_images(test_dir, classes)
        test_images = _decode(test_files, image_size, MODES[channels])
    mean, std = channel_statistics(images)
    return Dataset(
        name=top.resolve().name,
        train_images=images,
        train_labels=labels,
        test_images=test_images,
        test_labels=test_labels,
        classes=classes,
        mean=mean,
        std=std,
        padding=image_size // 8,
    )


def existing(root: str | os.PathLike[str]) -> Path:
    """The folder `root`, or the FileNotFoundError that says what should be there."""
    top = Path(root).expanduser()
    if not top.is_dir():
        raise FileNotFoundError(f"data_dir: {top} is not a folder; expected {top}/train/<class>/<image> in it")
    return top


def test_folder(top: Path) -> Path | None:
    """The folder of test images in `top`, if there is one."""
    return next((top / t for t in TEST_FOLDERS if (top / t).is_dir()), None)


def class_names(train_dir: Path) -> tuple[str, ...]:
    """The classes: names of the folders in `train_dir`, at least two, in alphabetical order."""
    found = _folders(train_dir)
    if len(found) < 2:
        raise ValueError(f"{train_dir}: expected at least two class folders, got only {found[0]!r}")
    return found


def _folders(folder: Path) -> tuple[str, ...]:
    found = tuple(sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")))
    if not found:
        raise ValueError(f"{folder}: no class folders in it; expected {folder}/<class>/<image>")
    return found


def list_images(folder: Path, classes: tuple[str, ...]) -> tuple[list[Path], Tensor]:
    """Image files of the class folders in `folder`, and their labels int64 [N]: places in `classes`."""
    present = _folders(folder)
    if unknown := sorted(set(present) - set(classes)):
        raise ValueError(f"{folder / unknown[0]}: class {unknown[0]!r} is not among the training classes")
    files: list[Path] = []
    labels: list[int] = []
    ignored = 0
    for name in present:
        inside = sorted(p for p in (folder / name).rglob("*") if p.is_file())
        images = [p for p in inside if p.suffix.lower() in SUFFIXES]
        if not images:
            raise ValueError(f"{folder / name}: no images in it ({', '.join(sorted(SUFFIXES))})")
        ignored += len(inside) - len(images)
        files += images
        labels += [classes.index(name)] * len(images)
    if ignored:
        warnings.warn(f"{folder}: {ignored} files that are not images were ignored", stacklevel=4)
    return files, torch.tensor(labels, dtype=torch.int64)


def _decode(files: list[Path], size: int, mode: str) -> Tensor:
    """uint8 [N, C, size, size]; Pillow releases the interpreter lock, so threads help."""
    out = np.empty((len(files), size, size, len(Image.new(mode, (1, 1)).getbands())), np.uint8)

    def one(i: int) -> None:
        try:
            with Image.open(files[i]) as image:
                if image.mode[0] in "IF":
                    raise ValueError(f"mode {image.mode}, expected 8 bits per channel")
                small = image.convert(mode).resize((size, size), Image.Resampling.BILINEAR)
        except Exception as err:  # a damaged image can raise nearly anything
            raise ValueError(f"{files[i]}: cannot be read as an image: {err}") from err
        out[i] = np.asarray(small).reshape(out.shape[1:])

    with ThreadPoolExecutor() as pool:
        list(pool.map(one, range(len(files))))  # list() raises the first error
    return torch.from_numpy(out).permute(0, 3, 1, 2).contiguous()
