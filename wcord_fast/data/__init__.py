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

The methods of `wcord_fast.distill` take a `Batch`; it also unpacks like a tuple. `index` holds rows of the training
set, by which the banks of the losses are addressed. Shuffle and augmentation are functions of (seed, epoch)
alone, equal on every device. So there is no state to save: `train.epoch(epoch, start=batches_done)` resumes in the
middle of an epoch.

A data set of your own is named by `data.register`, or by the dotted path of the function that loads it.
`Indexed(train_set)` gives any map-style data set (torchvision, Hugging Face, your own) the row numbers by which banks
are addressed, so that `distill.fit` takes a `DataLoader` of it.

"imagenet" is not held in memory: it is a `LazyFolder`, and worker processes decode the batches that `train_batches` and
`test_batches` make from it.
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

FILE_READERS = {  # they need a package of the extra `train`, so they are imported on first use
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
    if name not in FILE_READERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require_train(f"wcord_fast.data.{name}", "PIL")
    return getattr(import_module(f".{FILE_READERS[name]}", __name__), name)
