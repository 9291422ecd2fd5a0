"""Times, memory and kernels of single calls on a device: by CUDA events on a GPU, by the wall clock elsewhere."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from bench.measure import quantiles

WARM_UPS = 3
CPU_REPEATS = 3  # for a dry run


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_times(call: Callable[[], object], device: torch.device, repeats: int = 30) -> dict[str, float]:
    """p20, p50 and p80 in microseconds of one call: its device time on a GPU."""
    for _ in range(WARM_UPS):
        call()
    if device.type != "cuda":
        return quantiles([1e6 * seconds(call) for _ in range(CPU_REPEATS)])
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
    return quantiles([1e6 * seconds(waited) for _ in range(repeats if device.type == "cuda" else CPU_REPEATS)])


def graphed(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """A function that replays `call` as a CUDA graph; `call` itself on a device without graphs."""
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


def launches(call: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Kernels of a call as the profiler sees them: `launches`, `ours` of them, and count and time of each by name.

    Empty on a CPU. Copies and fills of memory are named as the profiler names them.
    """
    if device.type != "cuda":
        return {}
    call()
    synchronize(device)
    with torch.profiler.profile() as seen:
        call()
        synchronize(device)
    kernels: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    ours = 0
    for event in seen.events() or ():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            name = short_name(event.name)
            kernels[name][0] += 1
            kernels[name][1] = round(kernels[name][1] + event.time_range.elapsed_us(), 2)
            ours += "wcf::" in event.name or ("::" not in event.name and name.endswith("_kernel"))
    result = {name: {"launches": count, "us": us} for name, (count, us) in sorted(kernels.items())}
    return {"launches": sum(k["launches"] for k in result.values()), "ours": ours, "kernels": result}


def short_name(kernel: str) -> str:
    """A kernel's name without return type, namespaces, template arguments and parameters."""
    bare = kernel.replace("(anonymous namespace)::", "").removeprefix("void ")
    return re.split(r"[<(]", bare)[0].strip().rpartition("::")[2] or kernel[:80]


def peak_megabytes(call: Callable[[], object], device: torch.device) -> float | None:
    """The rise of the allocator's memory during a call, in MiB; None on a CPU, see `bench.measure`."""
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


def tried(row: dict[str, Any], measure: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """`row` after `measure(row)`. If that raises, `failed` holds the error, and the numbers measured before it stay."""
    try:
        measure(row)
    except Exception as error:
        row["failed"] = f"{type(error).__name__}: {error}"[:500]
    return row
