"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 50,000 training and 10,000 test images, 32x32, in colour.

Three forms are read: the pickles of the original "python version" in their folder; its .tar.gz as downloaded, of which
nothing is written to disk; an .npz with train_images, test_images (uint8 [N, 32, 32, 3] or [N, 3, 32, 32]) and
train_labels, test_labels (integers [N]). Sets of another length, such as a subset of CIFAR, load as well.
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
from .folders import path_of

DEFAULT_DIR = "data"
IMAGE_SIZE = 32
TARS = (".tar.gz", ".tgz", ".tar")
Labelled = tuple[Tensor, Tensor]  # images uint8 [N, 3, 32, 32], labels int64 [N]


@dataclass(frozen=True)
class Cifar:
    """CIFAR-10 or CIFAR-100.

    Attributes:
        name, title: its name in options, and in messages.
        folder: name of the pickles' folder.
        megabytes: size of the archive.
        train, test: file names of the pickles.
        labels: key of the labels in the pickles.
        classes: class names, in label order.
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
            FileNotFoundError: no such data there; the message says how to get it.
            ValueError: a file is damaged or holds something else, and the message names it; or another image_size.
        """
        if image_size not in (None, IMAGE_SIZE):
            raise ValueError(f"image_size: {self.title} is {IMAGE_SIZE}x{IMAGE_SIZE}, got {image_size}")
        path = path_of(DEFAULT_DIR if data_dir is None else data_dir)
        source = self._find(path)
        if source.suffix == ".npz":
            train, test = self._read_npz(source)
        else:
            pickles = self._pickles(source)
            files = [self._labelled(name, content) for name, content in pickles.items()]
            train, test = _joined(files[:-1]), files[-1]
        return Dataset(self.name, *train, *test, self.classes, self.mean, self.std)

    def _find(self, path: Path) -> Path:
        """The .npz file, the archive or the folder of the pickles."""
        if path.is_file():
            if path.name.endswith((".npz", *TARS)):
                return path
            raise ValueError(f"data_dir: {path} is no folder, no .npz and no {' or '.join(TARS)}")
        problem = "nothing of it there"
        for folder in (path, path / self.folder):
            present = [name for name in self.files if (folder / name).is_file()]
            if len(present) == len(self.files):
                return folder
            if present:
                problem = f"only {', '.join(str(folder / name) for name in present)}"
        tars = [path / f"{self.archive.removesuffix('.tar.gz')}{end}" for end in TARS]
        if result := next((tar for tar in tars if tar.is_file()), None):
            return result
        archives = sorted(path.glob("*.npz"))
        if len(archives) == 1:
            return archives[0]
        if archives:
            problem = f"{len(archives)} .npz files: give the path of one"
        if path.name.endswith((".npz", *TARS)):
            raise FileNotFoundError(f"data_dir: no such file: {path}")
        raise FileNotFoundError(
            f"data_dir: no {self.title} in {path} ({problem}). Fetch it ({self.megabytes} MB) with\n"
            f"  mkdir -p {path} && curl -L {self.url} -o {path}/{self.archive}\n"
            f"and use data_dir={path}. Or give an .npz with train_images, test_images (uint8 [N, 32, 32, 3]) and "
            "train_labels, test_labels (integers [N])"
        )

    def _pickles(self, source: Path) -> dict[str, dict[str, Any]]:
        """Path -> content of every pickle, in the order of `files`."""
        if source.is_dir():
            return {str(source / name): safe_pickle.load(source / name) for name in self.files}
        result = archive.read(source, [f"{self.folder}/{name}" for name in self.files])
        return {f"{source}: {name}": safe_pickle.read(file, f"{source}: {name}") for name, file in result.items()}

    def _labelled(self, path: str, content: dict[str, Any]) -> Labelled:
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

    def _read_npz(self, path: Path) -> list[Labelled]:
        arrays = {}
        try:
            if not zipfile.is_zipfile(path):
                raise ValueError("it is no zip archive, or is cut off")
            with np.load(path, allow_pickle=False) as content:
                for split in ("train", "test"):
                    image_key, label_key = f"{split}_images", f"{split}_labels"
                    for key in (image_key, label_key):
                        if key not in content:
                            raise ValueError(f"no {key!r} in it, only {', '.join(content.files) or 'nothing'}")
                    arrays[split] = content[image_key], content[label_key]
        except Exception as err:  # a damaged archive can raise nearly anything
            raise ValueError(f"{path}: not a readable {self.title} .npz: {err or type(err).__name__}") from err
        checked = []
        for split, (images, labels) in arrays.items():
            if images.shape[1:] == (IMAGE_SIZE, IMAGE_SIZE, 3):
                images = images.transpose(0, 3, 1, 2)
            checked.append(self._checked(str(path), f"{split}_images", images, f"{split}_labels", labels))
        return checked

    def _checked(self, path: str, image_key: str, images: Any, label_key: str, labels: np.ndarray) -> Labelled:
        """uint8 [N, 3, 32, 32] and int64 [N]; a ValueError names the file and the fault."""
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


def _joined(files: list[Labelled]) -> Labelled:
    if len(files) == 1:
        return files[0]
    return torch.cat([images for images, _ in files]), torch.cat([labels for _, labels in files])


def _describe(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
