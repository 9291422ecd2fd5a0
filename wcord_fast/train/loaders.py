"""A user's `DataLoader` as the batches of the training loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from ..batch import Batch
from ..data.indexed import Indexed
from ..data.parts import Parts
from ..distributed import ranks
from . import checkpoint

UNLABELLED = -100  # what PyTorch's cross entropy leaves out


class TrainLoader:
    """Training batches from a `DataLoader` of a `data.Indexed` set, on `device`.

    The order of epoch e depends on the state of torch's generator when the epoch begins, which checkpoints keep. The
    loader's own generator, if any, is seeded anew from (seed, e), and a sampler's `set_epoch(e)`, if any, is called.
    So a resumed run sees the batches of an uninterrupted one, except with `persistent_workers` and random transforms,
    whose generators are not kept.

    On several processes the sampler must be a `DistributedSampler`, which gives every process equally many rows.

    Args:
        loader: yields (images [B, C, H, W], labels int64 [B], index int64 [B]).
        device: where the batches are put.
        seed: seed of the loader's own generator.
    Attributes:
        classes: once it is set, every batch's labels are checked to be below it (those that the loader puts on the
            CPU, where that waits for nothing).
    Raises:
        TypeError, ValueError: another kind of loader; the message says what was expected.
    """

    def __init__(self, loader: DataLoader, device: torch.device, seed: int) -> None:
        if not isinstance(loader, DataLoader):
            raise TypeError(f"loader: expected a torch.utils.data.DataLoader, got {type(loader).__name__}")
        if not isinstance(loader.dataset, Indexed):
            raise TypeError(
                "loader: expected a DataLoader of data.Indexed(train_set), whose items end with their row number, got "
                f"one of {type(loader.dataset).__name__}"
            )
        sampler = loader.sampler
        world = ranks().world
        if world > 1 and not (isinstance(sampler, DistributedSampler) and sampler.num_replicas == world):
            raise ValueError(
                f"loader: expected a DistributedSampler of {world} processes, got {type(sampler).__name__}"
            )
        if len(loader) == 0:
            raise ValueError(f"loader: expected at least one batch, got none of {len(loader.dataset)} rows")
        self.loader, self.device, self.seed = loader, device, seed
        self.classes: int | None = None
        self.images, self.labels = len(loader.dataset), loader.dataset.labels
        size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
        self.batch_size = (size if isinstance(size, int) else 0) * world

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of epoch `epoch` (from 0)."""
        samplers: tuple[Any, ...] = (self.loader.sampler, self.loader.batch_sampler)
        candidates = (getattr(holder, "generator", None) for holder in (self.loader, *samplers))
        for generator in {id(g): g for g in candidates if isinstance(g, torch.Generator)}.values():
            generator.manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        for sampler in samplers:
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
        return map(self._batch, self.loader)

    def once(self) -> Iterator[Batch]:
        """This process' part of all rows, in order, with the data set's own transforms."""
        generators = checkpoint.rng_state()
        parts = Parts(self.images, self.batch_size or len(self.first().labels) * ranks().world, ranks())
        loader = self.loader
        try:
            yield from map(
                self._batch,
                DataLoader(
                    loader.dataset,
                    batch_sampler=[list(range(rows.start, rows.stop)) for rows in parts.in_order()],
                    num_workers=loader.num_workers,
                    collate_fn=loader.collate_fn,
                    worker_init_fn=loader.worker_init_fn,
                ),
            )
        finally:
            checkpoint.set_rng_state(generators)

    def first(self) -> Batch:
        """One batch, from which shapes are read."""
        return self._batch(next(iter(self.loader)))

    def weight(self, i: int) -> float:
        """1: a `DistributedSampler` gives every process equally many rows."""
        return 1.0

    def whole(self) -> Self:
        """These batches, if this process trains alone.

        Raises:
            NotImplementedError: several processes.
        """
        if ranks().world > 1:
            raise NotImplementedError(
                f"method: its pre-training stage runs on one process, got {ranks().world}; not supported with a loader"
            )
        return self

    def described(self) -> dict[str, Any] | None:
        """None: the normalisation of the loader's images is not known."""
        return None

    def _batch(self, item: Any) -> Batch:
        return as_batch("loader", item, self.device, self.classes)


class TestLoader:
    """Test batches from an iterable of (images, labels) or (images, labels, index), on `device`."""

    __test__ = False  # for pytest, which would collect a class of this name

    def __init__(self, loader: Any, device: torch.device) -> None:
        if not hasattr(loader, "__iter__") or hasattr(loader, "__next__"):
            raise TypeError(
                f"test_loader: expected batches that can be read in every epoch, got {type(loader).__name__}"
            )
        self.loader, self.device = loader, device
        self.classes: int | None = None  # as in TrainLoader

    def __iter__(self) -> Iterator[Batch]:
        first = 0
        for item in self.loader:
            if isinstance(item, (tuple, list)) and len(item) == 2:
                item = (*item, torch.arange(first, first + len(item[1])))
            batch = as_batch("test_loader", item, self.device, self.classes)
            first += len(batch.labels)
            yield batch


def as_batch(name: str, item: Any, device: torch.device, classes: int | None = None) -> Batch:
    """(images, labels, index) as a `Batch` on `device`.

    Args:
        name: the loader's argument, for messages.
        item: what the loader yields.
        device: where the batch is put.
        classes: the student's; None: labels are not compared with it.
    Raises:
        TypeError, ValueError: `item` has another form; the message begins with `name`.
    """
    if isinstance(item, (tuple, list)) and len(item) > 1 and _is_text(item[1]):
        raise TypeError(f"{name}: expected labels that are class numbers, 0 and up, got text, {item[1][0]!r}")
    if not isinstance(item, (tuple, list)) or len(item) != 3 or not all(isinstance(part, Tensor) for part in item):
        types = ", ".join(type(part).__name__ for part in item) if isinstance(item, (tuple, list)) else ""
        raise TypeError(f"{name}: expected tensors (images, labels, index), got {type(item).__name__} {types}".rstrip())
    images, labels, index = item
    if not images.is_floating_point():
        raise TypeError(f"{name}: expected images of a floating dtype, got {images.dtype}")
    for field, values in (("labels", labels), ("index", index)):
        if values.dtype != torch.int64 or list(values.shape) != [len(images)]:
            shape = f"{values.dtype} {list(values.shape)}"
            raise ValueError(f"{name}: expected {field} int64 [{len(images)}], one per image, got {shape}")
    if classes is not None and labels.device.type == "cpu":
        wrong = labels[(labels >= classes) | (labels < 0) & (labels != UNLABELLED)]
        if len(wrong):
            raise ValueError(f"{name}: expected labels in [0, {classes}), the student's classes, got {int(wrong[0])}")
    return Batch(*(part.to(device, non_blocking=True) for part in item))


def _is_text(labels: Any) -> bool:
    """Whether `labels` are what a DataLoader makes of a data set's strings: a list or tuple of them."""
    return isinstance(labels, (tuple, list)) and bool(labels) and isinstance(labels[0], str)
