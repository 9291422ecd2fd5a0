"""One training step, forward passes, losses, gradients and bank update, recorded once and replayed as a CUDA graph.

All data of a replay has a fixed address: the batch is copied into static buffers; parameters, batch-norm statistics,
banks, log Z, the sampler's seed and step, and the spectral norms' vectors are device tensors that change in place;
PyTorch's own CUDA generator advances at each replay. The gradients are tensors of the graph's memory, which the
optimiser reads after the replay. The optimiser's step and gradient clipping stay outside, since the learning rate is a
number on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..batch import Batch
from .meters import GraphWatch, Stopwatch, Watch
from .sources import TrainingBatches

WARM_UP = 3  # steps taken eagerly first: libraries choose algorithms and allocate workspaces
Values = dict[str, Tensor]
Function = Callable[[], Values]


class GraphedStep:
    """`step`, replayed from a graph after a few eager calls, with equal results.

    Args:
        step: (batch, watch) -> values, scalars on the device; it leaves gradients in `parameters`, whose gradients are
            None when it is called, and never synchronises. `watch` times the distillation loss.
        parameters: every parameter that gets a gradient.
        train: the training batches; a batch of another size, such as an epoch's last one, is taken eagerly.
        record: records a function without running it -> the outputs, and the function that replays it.
        warm: runs a step before the recording.
        make_watch: makes the watch that is recorded with the step.
    """

    def __init__(
        self,
        step: Callable[[Batch, Watch], Values],
        parameters: list[nn.Parameter],
        train: TrainingBatches,
        record: Callable[[Function], tuple[Values, Callable[[], None]]] | None = None,
        warm: Callable[[Function], Values] | None = None,
        make_watch: Callable[[], GraphWatch] = GraphWatch,
    ) -> None:
        self._step, self._parameters, self._train = step, parameters, train
        self._record, self._warm, self._make_watch = record or record_on_cuda, warm or on_side_stream, make_watch
        self._warmed = 0
        self._graph: Graph | None = None

    def __call__(self, batch: Batch, watch: Stopwatch) -> Values:
        """Leave the gradients of `batch` in the parameters, and return its values.

        The next replay overwrites the values: use them in the stream's order, or copy them.
        """
        if len(batch.labels) != self._train.batch_size:
            return self._step(batch, watch)
        if self._warmed < WARM_UP:
            self._warmed += 1
            return self._warm(lambda: self._step(batch, watch))
        if self._graph is None:
            self._graph = self._recorded(batch)
        graph = self._graph
        for static, value in zip(graph.batch, batch, strict=True):
            static.copy_(value)
        graph.replay()
        watch.replayed(graph.watch)
        for parameter, grad in zip(self._parameters, graph.grads, strict=True):
            parameter.grad = grad
        return graph.values

    def _recorded(self, batch: Batch) -> Graph:
        static, watch = Batch(*(t.clone() for t in batch)), self._make_watch()
        values, replay = self._record(lambda: self._step(static, watch))
        return Graph(replay, static, values, [p.grad for p in self._parameters], watch)


class Graph(NamedTuple):
    """A recorded step: the function that replays it, its input and its outputs, at fixed addresses."""

    replay: Callable[[], None]
    batch: Batch
    values: Values
    grads: list[Tensor | None]
    watch: GraphWatch


def record_on_cuda(function: Function) -> tuple[Values, Callable[[], None]]:
    """Record `function` into a CUDA graph of its own memory pool.

    Raises:
        NotImplementedError: an operation cannot be captured, such as a copy to the host.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        # Other threads go on in the meantime: a loader's may pin memory, which "global" forbids them.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            values = function()
    except RuntimeError as error:
        message = str(error).strip().splitlines()[0]
        raise NotImplementedError(f"cuda_graph: this step cannot be captured: {message}") from error
    return values, graph.replay


def on_side_stream(function: Function) -> Values:
    """Run `function` on another stream, in order with the current one."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        values = function()
    torch.cuda.current_stream().wait_stream(side)
    return values
