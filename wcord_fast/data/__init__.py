"""Image data sets held whole on the device, and batches of them augmented there.

    from wcord_fast import data
    digits = data.load("digits")                                        # embedded, offline
    cifar = data.load("cifar100", data_dir="data", limit_train=20_000)  # python pickles or an .npz
    mine = data.load("folder", data_dir="my_images", image_size=64)     # my_images/train/<class>/*.png ...

    train = data.TrainBatches(cifar.to("cuda"), batch_size=64, seed=1)
    for epoch in range(240):
        for images, labels, index in train.epoch(epoch):    # [B, C, H, W] normalised, int64 [B], int64 [B]
            ...
    for images, labels, index in data.TestBatches(cifar.to("cuda"), batch_size=500):
        ...

`index` is the row in the training set: what the banks of the distillation losses are addressed by. Shuffle
and augmentation are functions of (seed, epoch) alone, the same on every device: to resume in the middle of an
epoch, call `train.epoch(epoch, start=batches_done)`; there is no state to save.

"imagenet" is the one that is not held: a `LazyFolder`, of which `train_batches` and `test_batches` make batches that
are decoded by worker processes.
"""

# ruff: noqa: E402
from ..extras import require_train

require_train("wcord_fast.data", "PIL")

from .batches import Batch, TestBatches, TrainBatches
from .dataset import Dataset
from .lazy_folder import LazyBatches, LazyFolder
from .registry import load, names, test_batches, train_batches

__all__ = [
    "Batch",
    "Dataset",
    "LazyBatches",
    "LazyFolder",
    "TestBatches",
    "TrainBatches",
    "load",
    "names",
    "test_batches",
    "train_batches",
]
