"""Running sums that stay on the device, and the time of the distillation loss."""

from __future__ import annotations

import math
import time
from typing import Any, Protocol

import torch
from torch import Tensor

REMEDY = "try a lower lr, or clip_grad=5 (--lr, --clip-grad 5); checkpoints of earlier epochs are untouched"


OF_LABELS = ("ce", "train_top1")  # a row without a label counts for none of them


class NonFiniteLoss(RuntimeError):
    """A loss or a weight became NaN or infinite; the message names it, and the epoch."""


class Meters:
    """Means over one epoch of per-batch values, weighted by batch size; adding a batch never synchronises.

    The terms `OF_LABELS` are weighted by the batch's labelled images, where their number is given.
    """

    def __init__(self, epoch: int) -> None:
        self.count = 0
        self._epoch = epoch
        self._steps = 0
        self._names: list[str] = []
        self._sums = self._weights = torch.zeros(0)  # float64 [terms], both
        self._of_labels = torch.zeros(0)  # bool [terms]
        self._first_bad = torch.zeros(0)  # float64 [terms]: the first step with a value that is not finite

    def add(self, batch_size: int, values: dict[str, Tensor], labelled: Tensor | None = None) -> None:
        """Add one batch's means: scalars on the device, with equal names in every call; `labelled`, fp64, too."""
        stacked = torch.stack([value.detach().double() for value in values.values()])
        if not self._names:
            self._names = list(values)
            self._sums, self._weights = torch.zeros_like(stacked), torch.zeros_like(stacked)
            self._of_labels = torch.tensor([name in OF_LABELS for name in values]).to(stacked.device, non_blocking=True)
            self._first_bad = torch.full_like(stacked, math.inf)
        weights = torch.full_like(stacked, batch_size)
        if labelled is not None:
            weights = torch.where(self._of_labels, labelled, weights)
        self._sums += stacked * weights
        self._weights += weights
        step_if_bad = torch.full_like(stacked, self._steps).masked_fill_(stacked.isfinite(), math.inf)
        self._first_bad = torch.minimum(self._first_bad, step_if_bad)
        self._steps += 1
        self.count += batch_size

    def partials(self) -> tuple[Tensor, Tensor, Tensor, int]:
        """The values to join over processes: sums, weights, first non-finite steps (joined by minimum), and count."""
        return self._sums, self._weights, self._first_bad, self.count

    def means(self) -> dict[str, float]:
        """The means so far (synchronises).

        Raises:
            NonFiniteLoss: a term was not finite; the message names the first one.
        """
        steps = self._first_bad.tolist()
        for name, step in zip(self._names, steps, strict=True):
            if step < math.inf and step == min(steps):
                raise self.not_finite(name, int(step))
        return dict(zip(self._names, (self._sums / self._weights.clamp(min=1)).tolist(), strict=True))

    def not_finite(self, term: str, step: int | None = None) -> NonFiniteLoss:
        """The error for `term` in `step` (from 0; default: the current step)."""
        step = self._steps if step is None else step
        return NonFiniteLoss(
            f"the loss term {term!r} became NaN or infinite in step {step + 1} of epoch {self._epoch + 1}; {REMEDY}"
        )


class Watch(Protocol):
    """A context manager that times its block."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *_: object) -> None: ...


class Stopwatch:
    """Time spent in the distillation loss: the clock on the CPU, events in the stream on CUDA (no synchronisation).

    On the CPU a step runs in order, so the clock is exact. On CUDA it is the time between two events in the stream,
    including gaps in which the device waits for the host to launch the loss. Steps replayed from a CUDA graph are timed
    by the graph's own events; `sample` reads those of the last replay, the only readable ones.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds = 0.0
        self._since = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._replays = 0
        self._replay: GraphWatch | None = None
        self._samples: list[float] = []

    def __enter__(self) -> Stopwatch:
        if self._cuda:
            pair = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            self._events.append(pair)
            pair[0].record()
        else:
            self._since = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        if self._cuda:
            self._events[-1][1].record()
        else:
            self._seconds += time.perf_counter() - self._since

    def replayed(self, watch: GraphWatch) -> None:
        """Count one replay of the graph that `inside` times."""
        self._replays += 1
        self._replay = watch

    def sample(self) -> None:
        """Record the loss's time in the last replay, if there was one; call it after a synchronisation."""
        if self._replay is not None:
            self._samples.append(self._replay.seconds())

    def seconds(self) -> float:
        """The total so far; on CUDA call it after a synchronisation. Every replay counts as the samples' mean."""
        self._seconds += sum(start.elapsed_time(end) for start, end in self._events) / 1000
        self._events.clear()
        replays = self._replays * sum(self._samples) / len(self._samples) if self._samples else 0.0
        return self._seconds + replays


class GraphWatch:
    """A `Stopwatch` inside a CUDA graph: two events that every replay records again."""

    def __init__(self) -> None:
        self._start, self._end = (torch.cuda.Event(enable_timing=True, external=True) for _ in range(2))

    def __enter__(self) -> GraphWatch:
        self._start.record()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.record()

    def seconds(self) -> float:
        """Seconds of the last replay, which must have finished."""
        return self._start.elapsed_time(self._end) / 1000
