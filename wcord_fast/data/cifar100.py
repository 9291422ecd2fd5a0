"""CIFAR-100 (Krizhevsky 2009): 50,000 training and 10,000 test images, 32x32, 100 classes.

Two forms are read. The original "python version": the pickles `train` and `test` in `cifar-100-python/`. Or
an .npz with train_images, test_images (uint8 [N, 32, 32, 3] or [N, 3, 32, 32]) and train_labels, test_labels
(integers [N], fine classes). Sets of another length, a part of CIFAR-100 for instance, load as well.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import safe_pickle
from .dataset import Dataset

URL = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
DEFAULT_DIR = "data"
IMAGE_SIZE = 32
MEAN = (0.5071, 0.4867, 0.4408)
STD = (0.2675, 0.2565, 0.2761)
_NAMES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
    lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
    pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal
    shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank
    telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CLASSES = tuple(_NAMES.split())


def load(data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """CIFAR-100 from `data_dir`: the folder of the pickles or its parent, an .npz, or a folder with one .npz.

    Raises:
        FileNotFoundError: nothing of the kind there; the message says how to get it.
        ValueError: a file is damaged or holds something else; the message names it.
    """
    where = Path(DEFAULT_DIR if data_dir is None else data_dir).expanduser()
    source = _find(where)
    if source.suffix == ".npz":
        parts = _read_npz(source)
    else:
        parts = {part: _read_pickle(source / part) for part in ("train", "test")}
    (train_images, train_labels), (test_images, test_labels) = parts["train"], parts["test"]
    return Dataset("cifar100", train_images, train_labels, test_images, test_labels, CLASSES, MEAN, STD)


def _find(where: Path) -> Path:
    """The .npz file or the folder of the pickles."""
    if where.is_file():
        if where.suffix == ".npz":
            return where
        raise ValueError(f"data_dir: {where} is neither a folder nor an .npz; unpack an archive: tar -xzf {where}")
    wrong = "nothing of it there"
    for folder in (where, where / "cifar-100-python"):
        have = [part for part in ("train", "test") if (folder / part).is_file()]
        if len(have) == 2:
            return folder
        if have:
            wrong = f"only {folder / have[0]}"
    archives = sorted(where.glob("*.npz"))
    if len(archives) == 1:
        return archives[0]
    if archives:
        wrong = f"{len(archives)} .npz files: give the path of one"
    if where.suffix == ".npz":
        raise FileNotFoundError(f"data_dir: no such file: {where}")
    target = where
    raise FileNotFoundError(
        f"data_dir: no CIFAR-100 in {where} ({wrong}). Fetch it (169 MB) with\n"
        f"  mkdir -p {target} && curl -L {URL} -o {target}/cifar-100-python.tar.gz\n"
        f"  tar -xzf {target}/cifar-100-python.tar.gz -C {target}\n"
        f"and use data_dir={target}. Or give an .npz with train_images, test_images (uint8 [N, 32, 32, 3]) and "
        "train_labels, test_labels (integers [N])"
    )


def _read_pickle(path: Path) -> tuple[Tensor, Tensor]:
    content = safe_pickle.load(path)
    for key in ("data", "fine_labels"):
        if key not in content:
            raise ValueError(f"{path}: no {key!r} in it, only {', '.join(sorted(content)) or 'nothing'}")
    pixels = content["data"]
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != 3 * IMAGE_SIZE**2:
        raise ValueError(f"{path}: 'data' must be uint8 [N, 3072], got {_describe(pixels)}")
    labels = content["fine_labels"]
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise ValueError(f"{path}: 'fine_labels' must be a list of integers")
    images = pixels.reshape(-1, 3, IMAGE_SIZE, IMAGE_SIZE)
    if labels and not (min(labels) >= 0 and max(labels) < len(CLASSES)):
        raise ValueError(f"{path}: 'fine_labels' must be 0 .. 99, got {min(labels)} .. {max(labels)}")
    return _checked(path, "data", images, "fine_labels", np.array(labels, np.int64))


def _read_npz(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    parts = {}
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no zip archive, or is cut off")
        with np.load(path, allow_pickle=False) as archive:
            for part in ("train", "test"):
                image_key, label_key = f"{part}_images", f"{part}_labels"
                for key in (image_key, label_key):
                    if key not in archive:
                        raise ValueError(f"no {key!r} in it, only {', '.join(archive.files) or 'nothing'}")
                parts[part] = archive[image_key], archive[label_key]
    except Exception as err:  # a damaged archive can raise nearly anything
        raise ValueError(f"{path}: not a readable CIFAR-100 .npz: {err or type(err).__name__}") from err
    checked = {}
    for part, (images, labels) in parts.items():
        if images.shape[1:] == (IMAGE_SIZE, IMAGE_SIZE, 3):
            images = images.transpose(0, 3, 1, 2)
        checked[part] = _checked(path, f"{part}_images", images, f"{part}_labels", labels)
    return checked


def _checked(path: Path, image_key: str, images: Any, label_key: str, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    """uint8 [N, 3, 32, 32] and int64 [N], or a ValueError that says what was wrong in which file."""
    if images.dtype != np.uint8 or images.shape[1:] != (3, IMAGE_SIZE, IMAGE_SIZE) or len(images) == 0:
        raise ValueError(f"{path}: {image_key!r} must be uint8 images 32x32x3 or 3x32x32, got {_describe(images)}")
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise ValueError(f"{path}: {label_key!r} must be {len(images)} integers, got {_describe(labels)}")
    if labels.min() < 0 or labels.max() >= len(CLASSES):
        raise ValueError(f"{path}: {label_key!r} must be 0 .. 99, got {labels.min()} .. {labels.max()}")
    return torch.from_numpy(np.array(images, order="C")), torch.from_numpy(labels.astype(np.int64))


def _describe(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
