"""Any images in one folder per class, decoded once into one uint8 tensor.

    root/train/<class>/*.png and root/test/<class>/*.png, or other usual names of splits, see `split_folders`
    root/<class>/*.png, or only root/train/ (then a fixed fraction of every class is kept for testing)

The whole set is held in memory: N * channels * size^2 bytes. `lazy_folder` is for sets that are too large for that.
"""

from __future__ import annotations

import os

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..ops import checks
from . import split
from .dataset import Dataset, channel_statistics
from .decode import read_all
from .folders import class_names, display_name, existing_folder, list_images
from .skipping import require_all_classes, skip, without
from .split_folders import find_splits

MODES = {1: "L", 3: "RGB"}


def load(
    data_dir: str | os.PathLike[str],
    image_size: int = 32,
    *,
    channels: int = 3,
    test_fraction: float = 0.2,
    skip_corrupt: bool = False,
) -> Dataset:
    """The images under `data_dir`. Labels number the class folders in alphabetical order.

    Args:
        data_dir: see the top of this file for the two layouts.
        image_size: every image is resized to this height and width (bilinear with antialiasing, aspect not
            kept).
        channels: 3 (colour) or 1 (grey).
        test_fraction: fraction of the images kept for testing, every class in proportion, if there is no test folder.
        skip_corrupt: leave out the files that cannot be read; `skipped` of the result lists them.

    Raises:
        FileNotFoundError: data_dir is not a folder.
        ValueError: no classes, a class without images, a test class that is not in train, folders that look like
            splits of unknown names, unreadable images (all counted, the first named), an option out of range.
    """
    checks.integer("image_size", image_size, least=8)
    checks.choice("channels", channels, tuple(MODES))
    if not 0 < checks.fraction("test_fraction", test_fraction) < 1:
        raise ValueError(f"test_fraction: expected a number inside (0, 1), got {test_fraction}")
    top = existing_folder(data_dir)
    train_dir, test_dir = find_splits(top)
    classes = class_names(train_dir)
    files, labels = list_images(train_dir, classes)
    test_files, test_labels = ([], labels[:0]) if test_dir is None else list_images(test_dir, classes)
    images, bad = _decode(files, image_size, MODES[channels])
    test_images, bad_tests = _decode(test_files, image_size, MODES[channels])
    skipped = skip(
        [*files, *test_files], bad | {len(files) + i: reason for i, reason in bad_tests.items()}, skip_corrupt
    )
    images, labels = without(bad, images), without(bad, labels)
    test_images, test_labels = without(bad_tests, test_images), without(bad_tests, test_labels)
    require_all_classes(classes, labels, train_dir)
    if test_dir is None:
        n_test = max(1, round(len(labels) * test_fraction))
        try:
            train, test = map(torch.from_numpy, split.stratified_split(labels.numpy(), n_test))
        except ValueError as error:
            raise ValueError(f"test_fraction: {test_fraction} of {len(labels)} images: {error}") from None
        test_images, test_labels = images[test], labels[test]
        images, labels = images[train], labels[train]
    elif not len(test_labels):
        raise ValueError(f"{test_dir}: no image in it can be read")
    mean, std = channel_statistics(images)
    return Dataset(
        name=display_name(top.resolve().name),
        train_images=images,
        train_labels=labels,
        test_images=test_images,
        test_labels=test_labels,
        classes=classes,
        mean=mean,
        std=std,
        padding=image_size // 8,
        skipped=skipped,
    )


def _decode(files: list[str], size: int, mode: str) -> tuple[Tensor, dict[int, str]]:
    """uint8 [N, C, size, size], and {i: reason} of the files that cannot be read, whose images are black."""
    out = np.zeros((len(files), size, size, len(Image.new(mode, (1, 1)).getbands())), np.uint8)

    def store(i: int, image: Image.Image) -> None:
        small = image.resize((size, size), Image.Resampling.BILINEAR)
        out[i] = np.asarray(small).reshape(out.shape[1:])

    bad, _ = read_all(files, mode, store)
    return torch.from_numpy(out).permute(0, 3, 1, 2).contiguous(), bad
