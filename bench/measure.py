"""Timing side by side in one process, and the memory that a call takes for a while."""

from __future__ import annotations

import contextlib
import ctypes
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

_PAGE = 4096


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}  # cpu: of all threads of the process


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
    t = torch.tensor(values, dtype=torch.float64)
    return {f"p{q}": round(float(t.quantile(q / 100)), 4) for q in (20, 50, 80)}


def peak_megabytes(call: Callable[[], object]) -> float:
    """How far the resident memory of the process rises during one call (Linux; sampled every half millisecond)."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return float("nan")

    def resident() -> int:
        return int(statm.read_text().split()[1]) * _PAGE

    _give_back_freed_memory()
    before, peak, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, resident())
            time.sleep(5e-4)

    watcher = threading.Thread(target=watch)
    watcher.start()
    call()
    done.set()
    watcher.join()
    return round((max(peak, resident()) - before) / 2**20, 1)


def _give_back_freed_memory() -> None:
    """Freed memory that the C library keeps would hide what the next call takes."""
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
