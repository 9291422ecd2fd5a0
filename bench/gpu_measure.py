"""Times of single calls on a device: by CUDA events on a GPU, by the wall clock elsewhere (for tests of the bench)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from bench.measure import quantiles

WARM_UPS = 5


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def call_times(call: Callable[[], object], device: torch.device, repeats: int = 50) -> dict[str, float]:
    """p20, p50 and p80 in microseconds of one call: its device time on a GPU."""
    for _ in range(WARM_UPS):
        call()
    if device.type != "cuda":
        return quantiles([1e6 * seconds(call) for _ in range(repeats)])
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for start, stop in pairs:
        start.record()
        call()
        stop.record()
    torch.cuda.synchronize(device)
    return quantiles([1e3 * start.elapsed_time(stop) for start, stop in pairs])


def eager_times(call: Callable[[], object], device: torch.device, repeats: int = 20) -> dict[str, float]:
    """p20, p50 and p80 in microseconds of a call as a program without CUDA graphs sees it: launches and waiting too."""

    def waited() -> None:
        call()
        synchronize(device)

    for _ in range(WARM_UPS):
        waited()
    return quantiles([1e6 * seconds(waited) for _ in range(repeats)])


def graphed(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The same work as one replay of a CUDA graph; `call` itself where there are no CUDA graphs."""
    if device.type != "cuda":
        return call
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def peak_megabytes(call: Callable[[], object], device: torch.device) -> float | None:
    """How far the allocator's memory rises during a call; None on a CPU (bench.measure has another way there)."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def tried(row: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """`row` with what was measured, or with the error: one form that fails must not take the others' numbers away."""
    try:
        return row | measure()
    except Exception as error:
        return row | {"exit": 1, "error": f"{type(error).__name__}: {error}"[:500]}
