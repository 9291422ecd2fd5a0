"""Interleaved timing in one process, and the peak memory of a call.

Imports nothing that starts threads: `bench ot` imports this module before it limits their number.
"""

from __future__ import annotations

import ctypes
import gc
import math
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}  # "cpu" adds up all threads of the process


def interleaved(
    calls: dict[str, Callable[[], object]], repeats: int, clock: str = "wall"
) -> dict[str, dict[str, float]]:
    """Milliseconds (p20, p50, p80) of each call: one warm-up, then rounds in random order. With one thread the "cpu"
    clock leaves out the time in which other processes had the core."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    order = list(calls)
    shuffle = random.Random(0)
    for _ in range(repeats):
        shuffle.shuffle(order)
        for name in order:
            start = CLOCKS[clock]()
            calls[name]()
            times[name].append(1e3 * (CLOCKS[clock]() - start))
    return {name: quantiles(values) for name, values in times.items()}


def quantiles(values: list[float]) -> dict[str, float]:
    """p20, p50 and p80, interpolated."""
    tenths = statistics.quantiles(values, n=10, method="inclusive") if len(values) > 1 else values * 9
    return {f"p{10 * k}": round(tenths[k - 1], 4) for k in (2, 5, 8)}


def peak_megabytes(call: Callable[[], object]) -> float:
    """The rise of resident memory during a call, in MiB (Linux; NaN elsewhere)."""
    try:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that the C library keeps would hide the call's memory
        Path("/proc/self/clear_refs").write_text("5")
        before = _status_kilobytes("VmRSS")
    except (OSError, AttributeError):
        call()
        return math.nan
    call()
    return round((_status_kilobytes("VmHWM") - before) / 1024, 3)


def _status_kilobytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])
