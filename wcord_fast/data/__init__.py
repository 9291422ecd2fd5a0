"""Image data sets held whole on the device, and batches of them augmented there.

    from wcord_fast import data
    digits = data.load("digits")                                        # embedded, offline
    cifar = data.load("cifar100", data_dir="data", limit_train=20_000)  # python pickles or an .npz
    mine = data.load("folder", data_dir="my_images", image_size=64)     # my_images/train/<class>/*.png ...

    train = data.TrainBatches(cifar.to("cuda"), batch_size=64, seed=1)
    for epoch in range(240):
        for batch in train.epoch(epoch):    # a Batch: images [B, C, H, W] normalised, labels int64 [B], index int64 [B]
            ...
    for images, labels, index in data.TestBatches(cifar.to("cuda"), batch_size=500):
        ...

A `Batch` is what the methods of `wcord_fast.distill` take; it also unpacks like a tuple. `index` is the row in the
training set: what the banks of the distillation losses are addressed by. Shuffle and augmentation are functions of
(seed, epoch) alone, the same on every device: to resume in the middle of an epoch, call
`train.epoch(epoch, start=batches_done)`; there is no state to save.

A data set of your own: `data.register`, or the dotted path of the function that loads it.
`Indexed(train_set)` gives any map-style data set (torchvision, Hugging Face, your own) the row numbers by which banks
are addressed, so that `distill.fit` takes a `DataLoader` of it.

"imagenet" is the one that is not held: a `LazyFolder`, of which `train_batches` and `test_batches` make batches that
are decoded by worker processes.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..batch import Batch
from ..extras import require_train
from .batches import TestBatches, TrainBatches
from .dataset import Dataset
from .indexed import Indexed

if TYPE_CHECKING:
    from .lazy_batches import LazyBatches
    from .lazy_folder import LazyFolder
    from .registry import held_names, load, names, register, source, spelled, test_batches, train_batches
    from .sources import Source

READERS = {  # what reads files, by a package that only the extra `train` brings: imported when it is used
    "LazyBatches": "lazy_batches",
    "LazyFolder": "lazy_folder",
    "Source": "sources",
    "held_names": "registry",
    "load": "registry",
    "names": "registry",
    "register": "registry",
    "source": "registry",
    "spelled": "registry",
    "test_batches": "registry",
    "train_batches": "registry",
}

__all__ = [
    "Batch",
    "Dataset",
    "Indexed",
    "LazyBatches",
    "LazyFolder",
    "Source",
    "TestBatches",
    "TrainBatches",
    "held_names",
    "load",
    "names",
    "register",
    "source",
    "spelled",
    "test_batches",
    "train_batches",
]


def __getattr__(name: str) -> Any:
    if name not in READERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require_train(f"wcord_fast.data.{name}", "PIL")
    return getattr(import_module(f".{READERS[name]}", __name__), name)
