"""One training step, forward passes, losses, gradients and bank update, recorded once and replayed as a CUDA graph.

What a replay reads and writes has a fixed address: the batch is copied into static buffers; parameters, batch-norm
statistics, banks, log Z, the sampler's seed and step, and the spectral norms' vectors are device tensors that change in
place; PyTorch's own CUDA generator advances at each replay. The gradients are tensors of the graph's memory, which the
optimiser reads after the replay. Its step and gradient clipping stay outside: the learning rate is a number of
the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..batch import Batch
from .meters import GraphWatch, Stopwatch, Watch
from .sources import TrainingBatches

WARM_UP = 3  # steps taken eagerly first: libraries choose their algorithms and make their workspaces
Values = dict[str, Tensor]
Function = Callable[[], Values]


class GraphedStep:
    """`step` with equal results, replayed from a graph after a few eager calls.

    Args:
        step: (batch, watch) -> values, scalars on the device; it leaves gradients in `parameters`, whose gradients are
            None when it is called, and never synchronises. `watch` times a part of it.
        parameters: every parameter that gets a gradient.
        train: the batches; one of another size than theirs (an epoch's last,
            smaller or larger) is taken eagerly.
        record: a function that is recorded without being run -> its outputs, and what replays it.
        warm: runs a step before the recording.
        inside: makes the watch that is recorded with the step.
    """

    def __init__(
        self,
        step: Callable[[Batch, Watch], Values],
        parameters: list[nn.Parameter],
        train: TrainingBatches,
        record: Callable[[Function], tuple[Values, Callable[[], None]]] | None = None,
        warm: Callable[[Function], Values] | None = None,
        inside: Callable[[], GraphWatch] = GraphWatch,
    ) -> None:
        self._step, self._parameters, self._train = step, parameters, train
        self._record, self._warm, self._inside = record or record_on_cuda, warm or on_side_stream, inside
        self._warmed = 0
        self._graph: Graph | None = None

    def __call__(self, batch: Batch, watch: Stopwatch) -> Values:
        """The values of `batch`, its gradients in the parameters.

        The values are overwritten by the next replay: use them in the stream's order, or copy them.
        """
        if len(batch.labels) != self._train.batch_size:
            return self._step(batch, watch)
        if self._warmed < WARM_UP:
            self._warmed += 1
            return self._warm(lambda: self._step(batch, watch))
        if self._graph is None:
            self._graph = self._recorded(batch)
        graph = self._graph
        for static, given in zip(graph.batch, batch, strict=True):
            static.copy_(given)
        graph.replay()
        watch.replayed(graph.watch)
        for parameter, grad in zip(self._parameters, graph.grads, strict=True):
            parameter.grad = grad
        return graph.values

    def _recorded(self, batch: Batch) -> Graph:
        static, inside = Batch(*(t.clone() for t in batch)), self._inside()
        values, replay = self._record(lambda: self._step(static, inside))
        return Graph(replay, static, values, [p.grad for p in self._parameters], inside)


class Graph(NamedTuple):
    """A recorded step: what replays it, its input, and its outputs, all at fixed addresses."""

    replay: Callable[[], None]
    batch: Batch
    values: Values
    grads: list[Tensor | None]
    watch: GraphWatch


def record_on_cuda(function: Function) -> tuple[Values, Callable[[], None]]:
    """Record `function` into a CUDA graph of its own memory pool.

    Raises:
        NotImplementedError: something in it cannot be captured, such as a copy to the host.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
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
