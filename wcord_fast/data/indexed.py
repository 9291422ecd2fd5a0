"""A user's own data set with the row numbers by which banks are addressed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, IterableDataset, Subset, TensorDataset
from torch.utils.data import Dataset as TorchDataset

IMAGE_COLUMNS = ("pixel_values", "image", "images", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label", "target")


class Indexed(TorchDataset):
    """A map-style data set whose row i is (image, label, i).

        loader = torch.utils.data.DataLoader(Indexed(train_set), batch_size=64, shuffle=True)
        for images, labels, index in loader: ...

    `labels` holds the class of every row; no image is read for it. The labels come from the argument, or from the data
    set: its attribute `targets` or `labels` (torchvision), its second tensor (TensorDataset), or its label column
    (Hugging Face), also inside `Subset`, `ConcatDataset` and `Indexed`. `labels` is None if there are none. Rows are
    numbered after a subset is taken: Indexed(Subset(...)), not Subset(Indexed(...)).

    Args:
        dataset: has `len()`; its items are pairs (image, label), or mappings that hold both.
        labels: the class of every row, integers [N].
        image, label: keys of a mapping; default: the first of IMAGE_COLUMNS and of LABEL_COLUMNS that it has.
        transform: applied to every image.
    Raises:
        TypeError: a data set without length or without rows by number (an IterableDataset).
        ValueError: labels that are not N integers; an item in which image and label are not found.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        labels: Tensor | np.ndarray | Sequence[int] | None = None,
        image: str | None = None,
        label: str | None = None,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        by_number = hasattr(dataset, "__getitem__") and not isinstance(dataset, IterableDataset)
        if not hasattr(dataset, "__len__") or not by_number:
            raise TypeError(f"dataset: expected one with len() and rows by number, got {type(dataset).__name__}")
        self.dataset, self.transform = dataset, transform
        self._image = IMAGE_COLUMNS if image is None else (image,)
        self._label = LABEL_COLUMNS if label is None else (label,)
        if labels is None:
            self.labels = labels_of(dataset, self._label)
        else:
            self.labels = _integers(labels, len(dataset))
            if self.labels is None:
                raise ValueError(f"labels: expected {len(dataset)} integers, one per row, got {_described(labels)}")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> tuple[Any, Any, int]:
        if not -len(self) <= row < len(self):
            raise IndexError(f"row: expected one of {len(self)}, got {row}")
        row = row % len(self)
        image, label = self._pair(self.dataset[row])
        return (image if self.transform is None else self.transform(image)), label, row

    def _pair(self, item: Any) -> tuple[Any, Any]:
        if isinstance(item, Mapping):
            return _first(item, self._image, "image"), _first(item, self._label, "label")
        if isinstance(item, (tuple, list)) and len(item) == 2:
            return item[0], item[1]
        raise ValueError(f"dataset: expected items (image, label), or mappings that hold both, got {_described(item)}")


def labels_of(dataset: Any, columns: Sequence[str] = LABEL_COLUMNS) -> Tensor | None:
    """The class of every row of a data set, int64 [N], or None if it has no labels of its own; no image is read.

    Args:
        dataset: see `Indexed`.
        columns: names of a label column; the first that a Hugging Face data set has is taken.
    """
    if isinstance(dataset, Subset):
        whole = labels_of(dataset.dataset, columns)
        return None if whole is None else whole[torch.as_tensor(dataset.indices, dtype=torch.int64)]
    if isinstance(dataset, ConcatDataset):
        results = [labels_of(member, columns) for member in dataset.datasets]
        labels = [result for result in results if result is not None]
        return torch.cat(labels) if len(labels) == len(results) else None
    if isinstance(dataset, TensorDataset):
        return _integers(dataset.tensors[1], len(dataset)) if len(dataset.tensors) > 1 else None
    for name in ("targets", "labels"):
        result = _integers(getattr(dataset, name, None), len(dataset))
        if result is not None:
            transform = getattr(dataset, "target_transform", None)  # torchvision's: items have what it returns
            given = None if transform is None else _integers([transform(v) for v in result.tolist()], len(dataset))
            return result if given is None else given  # one-hot vectors and the like: the classes that they stand for
    names = getattr(dataset, "column_names", None)
    column = next((name for name in columns if name in names), None) if isinstance(names, list) else None
    # Hugging Face's format replaces a user's transform, which would read the images.
    return None if column is None else _integers(dataset.with_format("numpy")[column][:], len(dataset))


def _integers(values: Any, count: int) -> Tensor | None:
    """`values` as int64 [count] on the CPU; None if they are anything else."""
    try:
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.array(values)
    except (TypeError, ValueError):  # ragged values, such as the boxes of a detection set
        return None
    return torch.from_numpy(array.astype(np.int64)) if array.dtype.kind in "iu" and array.shape == (count,) else None


def _first(item: Mapping[str, Any], names: Sequence[str], option: str) -> Any:
    for name in names:
        if name in item:
            return item[name]
    raise ValueError(f"{option}: expected {' or '.join(map(repr, names))} in an item, which has {', '.join(item)}")


def _described(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"{type(value).__name__} {list(shape)} of {str(value.dtype).removeprefix('torch.')}"
    return f"{type(value).__name__}{f' of {len(value)}' if isinstance(value, (tuple, list)) else ''}"
