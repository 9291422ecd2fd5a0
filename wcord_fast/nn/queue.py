"""FeatureQueue: the rows of the last batches, first in, first out."""

from __future__ import annotations

import torch
from torch import Tensor

from ..distributed.ranks import gather_rows, ranks, sizes_of
from ..ops import checks
from ..ops.queue import push_op
from .row_buffer import RowBuffer

UNKNOWN = -1  # the label of a row whose class is not known


class FeatureQueue(RowBuffer):
    """Rows [size, D] of earlier batches: negatives for data sets without image numbers, and for endless ones.

    Args:
        size: number of rows.
        dim: D.
        dtype: torch.float32 (default), bfloat16, float16 or float64.
        labels: keep an integer label beside each row, so that rows of an anchor's own class can be excluded.
        shard: None, every process holds all rows; or "rank", the rows are split over the ranks of the process group, in
            equal parts of ceil(size / W), and scoring them is collective. All ranks make the queue, after the group.

    It begins empty: `filled` counts the rows that have been pushed, at most `size`, and later slots hold zeros and
    the label -1. Score a batch first, then push it, or its rows are negatives of themselves; so the first batch has
    no negatives. Rows are written in place and in turn: after `pushed` rows in all, the next
    slot is `pushed` modulo `size`. Nothing waits for the device, so that a CUDA graph can hold a push. A graph that
    saved `rows` for its backward cannot be run after a push.

    In a process group `push_` is collective: every rank pushes the rows of all ranks in rank order, and so their queues
    are equal. A queue takes `size * dim` elements on every rank, with shard="rank" `ceil(size / W) * dim`, and
    `8 * size` bytes for labels, which every rank holds. Rows, labels and `pushed` are buffers without gradient: a state
    dict resumes exactly, on any number of ranks.
    """

    labels: Tensor | None  # int64 [size]
    pushed: Tensor  # int64 scalar

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        labels: bool = False,
        shard: str | None = None,
    ):
        super().__init__("size", size, dim, dtype, shard)
        keep_labels = checks.boolean("labels", labels)
        self.rows.zero_()
        self.register_buffer("labels", torch.full((self.size,), UNKNOWN) if keep_labels else None)
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    @property
    def size(self) -> int:
        """The number of its rows, on all ranks together."""
        return self.count

    @property
    def filled(self) -> Tensor:
        """The number of slots with a pushed row, the first ones: int64 scalar on the queue's device."""
        return self.pushed.clamp(max=self.size)

    def is_filled(self) -> Tensor:
        """bool [n]: True where a slot of `rows` holds a pushed row."""
        own = torch.arange(self.first_row, self.first_row + len(self.rows), device=self.pushed.device)
        return own < self.pushed

    def own_labels(self) -> Tensor | None:
        """int64 [n], the labels of `rows`; None where none are kept."""
        return None if self.labels is None else self.labels[self.first_row : self.first_row + len(self.rows)]

    @torch.no_grad()
    def push_(self, rows: Tensor, labels: Tensor | None = None) -> FeatureQueue:
        """Write rows (of all ranks, in rank order) over the oldest ones. Of more than `size` rows the last are kept.

        Args:
            rows: float [B, D], detached and rounded to the queue's dtype.
            labels: int64 or int32 [B], below 0 where unknown; required if the queue keeps labels, else None.
        Raises:
            TypeError, ValueError: a wrong argument, before anything is written or sent. On the CPU also a row that is
                not finite in the queue's dtype, on all ranks and before anything is written; elsewhere such a row is
                not written and its slot keeps the older one, see `wcord_fast.check`.
        """
        self.require_filled()
        checks.tensor("rows", rows, shape=("B", self.dim))
        if labels is not None:
            checks.tensor("labels", labels, shape=(len(rows),), dtypes=checks.INDICES)
        if (labels is None) != (self.labels is None):
            expected = "None: the queue keeps none" if self.labels is None else "one per row: the queue keeps them"
            raise ValueError(f"labels: expected {expected}")
        tensors = [rows] if labels is None else [rows, labels.long()]
        checks.same_device(queue=self.rows, rows=rows, **({} if labels is None else {"labels": labels}))
        if ranks().world > 1:
            tensors[0] = rows.to(self.rows.dtype)  # fewer bytes to send
            tensors = gather_rows(tensors, sizes_of(len(rows), rows.device))
        self.push_joined_(tensors[0], None if labels is None else tensors[1])
        return self

    @torch.no_grad()
    def push_joined_(self, rows: Tensor, labels: Tensor | None) -> None:
        """`push_` of the joined rows [B, D] of all ranks, which every rank holds, and their labels, int64 [B]."""
        push_op(self.rows, self.labels, self.pushed, rows, labels, self.first_row, self.size)

    def reset_parameters(self) -> None:
        """Empty the queue."""
        self.rows.zero_()
        self.pushed.zero_()
        if self.labels is not None:
            self.labels.fill_(UNKNOWN)
        if not self.rows.is_meta:
            self._empty = {}

    def extra_repr(self) -> str:
        labels = "" if self.labels is None else ", labels=True"
        shard = "" if self.shard is None else f", shard={self.shard!r}"
        return f"size={self.size}, dim={self.dim}, dtype={self.rows.dtype}{labels}{shard}"
