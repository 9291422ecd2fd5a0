"""Lower bounds of run time on this CPU: arithmetic at the speed of PyTorch's matrix product, bytes at that of a sum."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

SIDE, BYTES = 1024, 1 << 27  # a product that is all arithmetic, and a vector that no cache holds


def best_ms(call: Callable[[], object], repeats: int = 9) -> float:
    """The shortest of some calls: other work on the machine only ever adds. One thread's is its processor time."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    result = []
    for _ in range(repeats):
        start = clock()
        call()
        result.append(1e3 * (clock() - start))
    return min(result)


def speeds() -> tuple[float, float]:
    """(floating-point operations, bytes read) per millisecond by torch's threads: the best seen so far."""
    global _seen
    a, b, c = (torch.ones(SIDE, SIDE) for _ in range(3))
    x = torch.ones(BYTES // 4)
    now = 2 * SIDE**3 / best_ms(lambda: torch.mm(a, b, out=c)), BYTES / best_ms(x.sum)
    _seen = max(_seen[0], now[0]), max(_seen[1], now[1])
    return _seen


_seen = (0.0, 0.0)


def floor_ms(operations: float, read: float) -> float:
    """Milliseconds for so many floating-point operations and bytes, whichever takes longer; measured anew."""
    per_operation, per_byte = speeds()
    return max(operations / per_operation, read / per_byte)


def critic_floor_ms(batch: int, k: int, num_data: int, dim: int) -> float:
    """Both directions: 2 D operations a score and 2 D for its share of the gradient; each drawn row read once."""
    rows = num_data * (1 - (1 - min(1.0, k / num_data)) ** batch)  # expected number of different rows
    return floor_ms(2 * batch * (k + 1) * 4 * dim, 2 * rows * dim * 4)
