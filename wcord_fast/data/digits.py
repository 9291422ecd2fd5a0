"""The embedded data set: scikit-learn's copy of the UCI optical digits (1,797 images, 8x8, 17 grey levels).

It comes with scikit-learn, so it needs no download. The division is ours: 360 test and 1,437 training images, every
class in proportion, rows chosen with seed 0. The writers are unknown, so both splits share writers.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ..extras import require_train
from ..ops import checks
from . import split
from .dataset import Dataset, channel_statistics

TEST_IMAGES = 360
SPLIT_SEED = 0
IMAGE_SIZE = 16


def load(image_size: int | None = None) -> Dataset:
    """The digits, with one channel, not mirrored; random crops shift by an eighth of the image (as 4 pixels of 32).

    Args:
        image_size: height and width, at least 8 (the original); larger images are interpolated bilinearly. Default 16.
    """
    require_train("data 'digits': these images come with scikit-learn and loading them", "sklearn")
    from sklearn.datasets import load_digits  # not at the top: it takes a second

    size = checks.integer("image_size", IMAGE_SIZE if image_size is None else image_size, least=8)
    bunch = load_digits()
    grey = torch.from_numpy(bunch.images).unsqueeze(1)  # float64 [N, 1, 8, 8], 0 .. 16
    if size != grey.shape[-1]:
        grey = F.interpolate(grey, size=(size, size), mode="bilinear", align_corners=False)
    images = (grey * (255 / 16)).round().to(torch.uint8)
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    train, test = map(torch.from_numpy, split.stratified_split(bunch.target, TEST_IMAGES, SPLIT_SEED))
    mean, std = channel_statistics(images[train])
    return Dataset(
        name="digits",
        train_images=images[train],
        train_labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
        classes=tuple(str(c) for c in bunch.target_names),
        mean=mean,
        std=std,
        padding=size // 8,
        flip=False,
    )
