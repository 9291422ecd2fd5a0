"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 50,000 training and 10,000 test images, 32x32, in colour.

Three forms are read. The original "python version": its pickles in their folder; or its .tar.gz as it was downloaded,
of which nothing is written to disk. Or an .npz with train_images, test_images (uint8 [N, 32, 32, 3] or [N, 3, 32, 32])
and train_labels, test_labels (integers [N]). Sets of another length, a part of CIFAR for instance, load as well.
"""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import archive, safe_pickle
from .dataset import Dataset

DEFAULT_DIR = "data"
IMAGE_SIZE = 32
TARS = (".tar.gz", ".tgz", ".tar")
Part = tuple[Tensor, Tensor]  # uint8 [N, 3, 32, 32], int64 [N]


@dataclass(frozen=True)
class Cifar:
    """One of the two.

    Attributes:
        name, title: for the program and for people.
        folder: of the pickles.
        megabytes: size of the archive.
        train, test: files of the pickles.
        labels: their key of the labels.
        classes: names, in label order.
        mean, std: per channel, of pixels scaled to [0, 1].
    """

    name: str
    title: str
    folder: str
    megabytes: int
    train: tuple[str, ...]
    test: str
    labels: str
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def archive(self) -> str:
        return f"{self.title.lower()}-python.tar.gz"

    @property
    def url(self) -> str:
        return f"https://www.cs.toronto.edu/~kriz/{self.archive}"

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train, self.test)

    def load(self, data_dir: str | os.PathLike[str] | None = None, image_size: int | None = None) -> Dataset:
        """The data in `data_dir`: the folder of the pickles or its parent, the archive, an .npz, or a folder with one.

        Raises:
            FileNotFoundError: nothing of the kind there; the message says how to get it.
            ValueError: a file is damaged or holds something else, and the message names it; or another image_size.
        """
        if image_size not in (None, IMAGE_SIZE):
            raise ValueError(f"image_size: {self.title} is {IMAGE_SIZE}x{IMAGE_SIZE}, got {image_size}")
        where = Path(DEFAULT_DIR if data_dir is None else data_dir).expanduser()
        source = self._find(where)
        if source.suffix == ".npz":
            train, test = self._read_npz(source)
        else:
            pickles = self._pickles(source)
            parts = [self._images(path, content) for path, content in pickles.items()]
            train, test = _joined(parts[:-1]), parts[-1]
        return Dataset(self.name, *train, *test, self.classes, self.mean, self.std)

    def _find(self, where: Path) -> Path:
        """The .npz file, the archive or the folder of the pickles."""
        if where.is_file():
            if where.name.endswith((".npz", *TARS)):
                return where
            raise ValueError(f"data_dir: {where} is no folder, no .npz and no {' or '.join(TARS)}")
        wrong = "nothing of it there"
        for folder in (where, where / self.folder):
            have = [part for part in self.files if (folder / part).is_file()]
            if len(have) == len(self.files):
                return folder
            if have:
                wrong = f"only {', '.join(str(folder / part) for part in have)}"
        tars = [where / f"{self.archive.removesuffix('.tar.gz')}{end}" for end in TARS]
        if result := next((tar for tar in tars if tar.is_file()), None):
            return result
        archives = sorted(where.glob("*.npz"))
        if len(archives) == 1:
            return archives[0]
        if archives:
            wrong = f"{len(archives)} .npz files: give the path of one"
        if where.name.endswith((".npz", *TARS)):
            raise FileNotFoundError(f"data_dir: no such file: {where}")
        raise FileNotFoundError(
            f"data_dir: no {self.title} in {where} ({wrong}). Fetch it ({self.megabytes} MB) with\n"
            f"  mkdir -p {where} && curl -L {self.url} -o {where}/{self.archive}\n"
            f"and use data_dir={where}. Or give an .npz with train_images, test_images (uint8 [N, 32, 32, 3]) and "
            "train_labels, test_labels (integers [N])"
        )

    def _pickles(self, source: Path) -> dict[str, dict[str, Any]]:
        """Path -> content of every pickle, in the order of `files`."""
        if source.is_dir():
            return {str(source / name): safe_pickle.load(source / name) for name in self.files}
        result = archive.read(source, [f"{self.folder}/{name}" for name in self.files])
        return {f"{source}: {name}": safe_pickle.read(file, f"{source}: {name}") for name, file in result.items()}

    def _images(self, path: str, content: dict[str, Any]) -> Part:
        for key in ("data", self.labels):
            if key not in content:
                raise ValueError(f"{path}: no {key!r} in it, only {', '.join(sorted(content)) or 'nothing'}")
        pixels = content["data"]
        if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != 3 * IMAGE_SIZE**2:
            raise ValueError(f"{path}: 'data' must be uint8 [N, 3072], got {_describe(pixels)}")
        labels = content[self.labels]
        if not isinstance(labels, list) or not all(type(label) is int for label in labels):
            raise ValueError(f"{path}: {self.labels!r} must be a list of integers")
        self._require_range(path, self.labels, labels)
        images = pixels.reshape(-1, 3, IMAGE_SIZE, IMAGE_SIZE)
        return self._checked(path, "data", images, self.labels, np.array(labels, np.int64))

    def _read_npz(self, path: Path) -> list[Part]:
        parts = {}
        try:
            if not zipfile.is_zipfile(path):
                raise ValueError("it is no zip archive, or is cut off")
            with np.load(path, allow_pickle=False) as content:
                for part in ("train", "test"):
                    image_key, label_key = f"{part}_images", f"{part}_labels"
                    for key in (image_key, label_key):
                        if key not in content:
                            raise ValueError(f"no {key!r} in it, only {', '.join(content.files) or 'nothing'}")
                    parts[part] = content[image_key], content[label_key]
        except Exception as err:  # a damaged archive can raise nearly anything
            raise ValueError(f"{path}: not a readable {self.title} .npz: {err or type(err).__name__}") from err
        checked = []
        for part, (images, labels) in parts.items():
            if images.shape[1:] == (IMAGE_SIZE, IMAGE_SIZE, 3):
                images = images.transpose(0, 3, 1, 2)
            checked.append(self._checked(str(path), f"{part}_images", images, f"{part}_labels", labels))
        return checked

    def _checked(self, path: str, image_key: str, images: Any, label_key: str, labels: np.ndarray) -> Part:
        """uint8 [N, 3, 32, 32] and int64 [N], or a ValueError that says what was wrong in which file."""
        if images.dtype != np.uint8 or images.shape[1:] != (3, IMAGE_SIZE, IMAGE_SIZE) or len(images) == 0:
            raise ValueError(f"{path}: {image_key!r} must be uint8 images 32x32x3 or 3x32x32, got {_describe(images)}")
        if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
            raise ValueError(f"{path}: {label_key!r} must be {len(images)} integers, got {_describe(labels)}")
        self._require_range(path, label_key, labels.tolist())
        return torch.from_numpy(np.array(images, order="C")), torch.from_numpy(labels.astype(np.int64))

    def _require_range(self, path: str, key: str, labels: list[int]) -> None:
        last = len(self.classes) - 1
        if labels and (min(labels) < 0 or max(labels) > last):
            raise ValueError(f"{path}: {key!r} must be 0 .. {last}, got {min(labels)} .. {max(labels)}")


def _joined(parts: list[Part]) -> Part:
    if len(parts) == 1:
        return parts[0]
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def _describe(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
