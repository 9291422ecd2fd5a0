"""The write of a queue as a `torch.library` op: rows over the oldest ones, on any device, without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks
from .library import register
from .status import Code


def _push_(
    queue: Tensor, labels: Tensor | None, pushed: Tensor, rows: Tensor, row_labels: Tensor | None, first: int, size: int
) -> None:
    """Slots `pushed` modulo `size` and on become rows [B, D]; then B is added to `pushed`.

    Args:
        queue: [n, D], slots first .. first + n - 1 of a queue of `size` slots.
        labels: int64 [size], of all slots.
    Raises:
        ValueError: on the CPU, a row that is not finite in the queue's dtype; nothing is written. On a device such a
            row is skipped and a status bit set.
    """
    count = len(rows)
    rows = rows.to(queue.dtype)
    ok = checks.finite_rows("rows", rows, Code.UPDATE_ROW)
    last = min(count, size)
    slots = (pushed + torch.arange(count - last, count, device=rows.device)) % size
    rows, ok = rows[-last:], ok[-last:]
    if len(queue) == size:
        kept = rows if rows.device.type == "cpu" else torch.where(ok[:, None], rows, queue[slots])
        queue.index_copy_(0, slots, kept)
    else:  # only the device knows which slots take a row: all are written
        source = (torch.arange(first, first + len(queue), device=rows.device) - slots[0]) % size  # row of each slot
        taken = source < last
        source = source.clamp(max=last - 1)
        queue.copy_(torch.where((taken & ok[source])[:, None], rows[source], queue))
    if labels is not None and row_labels is not None:
        labels.index_copy_(0, slots, torch.where(ok, row_labels[-last:], labels[slots]))
    pushed += count


push_op = register(
    "queue_push_(Tensor(a!) queue, Tensor(b!)? labels, Tensor(c!) pushed, Tensor rows, Tensor? row_labels, "
    "int first, int size) -> ()",
    _push_,
    lambda *args: None,
)
