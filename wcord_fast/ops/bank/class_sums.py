"""Per-class sums of a bank's rows, from which the mean score of a whole pool follows without a pass over the bank.

The mean negative of anchor b is (total - sum of the rows outside its pool) / P_b, so with the sums [C, D] an anchor
costs O(D). The sums are fp64. Each update adds its change, (new - old) in ascending b, so they drift by fp64 rounding
only.
"""

from __future__ import annotations

from weakref import ref

import torch
from torch import Tensor

from ..tensors import write_count
from .reference import last_of_each

CHUNK_ROWS = 1 << 16  # converted to fp64 at a time


class ClassSums:
    """Sums [G, D] of a bank's rows, and the test that they still belong to these rows.

    The last classes share one sum if they hold one row each, because a pool that excludes one row needs that row only.
    So rows of unknown class, each of which is a class, take no memory here.

    Attributes:
        label: int32 [N], class of each row, or None: all rows are one class.
        sums: fp64 [G, D]; class c is in sum min(c, G - 1).
    """

    def __init__(self, rows: Tensor, label: Tensor | None, class_start: Tensor | None = None):
        """`class_start`: [C+1], of the class tables that `label` is from; those of all rows where `rows` is a shard."""
        self.label = label
        num_sums = 1 if class_start is None else _num_sums(class_start)
        with torch.inference_mode(False), torch.no_grad():  # a training step changes them in place
            self.sums = torch.zeros(num_sums, rows.shape[1], dtype=torch.float64, device=rows.device)
            for lo in range(0, rows.shape[0], CHUNK_ROWS):
                part = rows[lo : lo + CHUNK_ROWS].to(torch.float64)
                self._add(torch.arange(lo, lo + part.shape[0], device=rows.device), part)
        self._rows, self._version = ref(rows), write_count(rows)

    def belongs_to(self, rows: Tensor, label: Tensor | None) -> bool:
        """False if the rows were written elsewhere or are another tensor, or if the classes differ."""
        return self._rows() is rows and self.label is label and self._version == write_count(rows) is not None

    def followed(self, rows: Tensor, index: Tensor, old: Tensor) -> None:
        """Adds the change of an update: rows `index` [B], in range, were `old` [B, D] before it."""
        change = rows[index].to(torch.float64) - old.to(torch.float64)
        self._add(index, change * last_of_each(index)[:, None])
        self._version = write_count(rows)

    def _add(self, index: Tensor, values: Tensor) -> None:
        if self.label is None:
            group = torch.zeros_like(index)
        else:
            group = self.label[index].long().clamp(max=len(self.sums) - 1)
        self.sums.index_put_((group,), values, accumulate=True)  # in ascending b on every device


def excluded_rows(by_class: Tensor, own: Tensor, label: Tensor, alone: Tensor) -> Tensor:
    """Sum of the rows of each anchor's class: fp64 [B, D].

    Args:
        by_class: fp64 [G, D], see `ClassSums`.
        own: [B, D], the anchors' own rows.
        label: integer [B], their classes.
        alone: bool [B, 1], True where the class holds that row alone.
    """
    return torch.where(alone, own.to(torch.float64), by_class[label.long().clamp(max=len(by_class) - 1)])


def _num_sums(class_start: Tensor) -> int:
    """G: one sum for each class up to the last with more than one row, and one sum for all classes after it."""
    several = (class_start.diff() > 1).nonzero()
    first_alone = int(several[-1]) + 1 if len(several) else 0
    return min(first_alone + 1, len(class_start) - 1)
