"""The data set that loaders return."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor

from ..ops import checks
from . import split


@dataclass(frozen=True, eq=False)
class Dataset:
    """A whole image data set, train and test, as tensors on one device.

    Attributes:
        name: name in logs and reports.
        train_images, test_images: uint8 [N, C, H, W], 0 black to 255 white.
        train_labels, test_labels: int64 [N], each in [0, len(classes)).
        classes: class names, in label order.
        mean, std: per channel, for pixels in [0, 1]; batches are normalised by them.
        padding: how far random crops shift the image by default, in pixels.
        flip: whether training images are mirrored at random by default (wrong for digits and text).
        skipped: files of the set that could not be read and are left out.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int = 4
    flip: bool = True
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _, c, h, w = checks.tensor(
            "train_images", self.train_images, shape=("N", "C", "H", "W"), dtypes=[torch.uint8]
        ).shape
        checks.tensor("test_images", self.test_images, shape=("N", c, h, w), dtypes=[torch.uint8])
        if isinstance(self.classes, str) or not hasattr(self.classes, "__len__"):
            raise TypeError(f"classes: expected a tuple of names, got {self.classes!r}")
        checks.same_device(
            train_images=self.train_images,
            train_labels=self.train_labels,
            test_images=self.test_images,
            test_labels=self.test_labels,
        )
        for name, images, labels in (
            ("train", self.train_images, self.train_labels),
            ("test", self.test_images, self.test_labels),
        ):
            checks.tensor(f"{name}_labels", labels, shape=(len(images),), dtypes=[torch.int64])
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= len(self.classes):
                raise ValueError(f"{name}_labels: expected 0 .. {len(self.classes) - 1}, got {low} .. {high}")
        if np.shape(self.mean) != (c,) or np.shape(self.std) != (c,):
            raise ValueError(f"mean, std: expected {c} numbers, one per channel, got {self.mean} and {self.std}")
        for value in self.mean:
            checks.finite("mean", value, torch.float32)
        for value in self.std:
            checks.positive("std", value)
        checks.integer("padding", self.padding, least=0)
        checks.boolean("flip", self.flip)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def channels(self) -> int:
        return self.train_images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        return self.train_images.shape[2], self.train_images.shape[3]

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of all images and labels, which identifies the data set."""
        digest = sha256()
        for tensor in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            digest.update(str(list(tensor.shape)).encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]

    @property
    def device(self) -> torch.device:
        return self.train_images.device

    def to(self, device: torch.device | str) -> Dataset:
        """This data set with its tensors on `device`."""
        return replace(
            self,
            train_images=self.train_images.to(device),
            train_labels=self.train_labels.to(device),
            test_images=self.test_images.to(device),
            test_labels=self.test_labels.to(device),
        )

    def limit_train(self, n: int) -> Dataset:
        """This data set with `n` training images, every class in proportion; the choice is fixed."""
        if checks.integer("limit_train", n, least=1) > len(self.train_labels):
            raise ValueError(f"limit_train: expected at most the {len(self.train_labels)} training images, got {n}")
        rows = split.stratified_rows(self.train_labels.cpu().numpy(), n)
        index = torch.from_numpy(rows).to(self.device)
        return replace(self, train_images=self.train_images[index], train_labels=self.train_labels[index])


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 [N, C, H, W], for pixels in [0, 1].

    They come from exact counts of the 256 values, so they depend on neither the order nor the device. A constant
    channel gets the deviation 1.
    """
    values = np.arange(256) / 255
    means, stds = [], []
    for channel in images.unbind(1):
        frequency = torch.bincount(channel.reshape(-1), minlength=256).cpu().numpy() / channel.numel()
        mean = float(frequency @ values)
        means.append(mean)
        stds.append(float(np.sqrt(frequency @ (values - mean) ** 2)) or 1.0)
    return tuple(means), tuple(stds)
