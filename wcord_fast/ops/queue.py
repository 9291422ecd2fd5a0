"""The write of a queue as a `torch.library` op: rows over the oldest ones, on any device, without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks
from .library import register
from .status import Code


def _push_(queue: Tensor, labels: Tensor | None, pushed: Tensor, rows: Tensor, row_labels: Tensor | None) -> None:
    """Slots `pushed` modulo the size and on become rows [B, D]; then B is added to `pushed`.

    Raises:
        ValueError: on the CPU, a row that is not finite in the queue's dtype; nothing is written. On a device such a
            row is skipped and a status bit set.
    """
    size, count = len(queue), len(rows)
    rows = rows.to(queue.dtype)
    ok = checks.finite_rows("rows", rows, Code.UPDATE_ROW)
    last = min(count, size)
    slots = (pushed + torch.arange(count - last, count, device=rows.device)) % size
    rows, ok = rows[-last:], ok[-last:]
    if rows.device.type != "cpu":
        rows = torch.where(ok[:, None], rows, queue[slots])
    queue.index_copy_(0, slots, rows)
    if labels is not None and row_labels is not None:
        labels.index_copy_(0, slots, torch.where(ok, row_labels[-last:], labels[slots]))
    pushed += count


push_op = register(
    "queue_push_(Tensor(a!) queue, Tensor(b!)? labels, Tensor(c!) pushed, Tensor rows, Tensor? row_labels) -> ()",
    _push_,
    lambda *args: None,
)
