"""Measured ceilings of a card, and the least time of a kernel that follows from them.

    python -m bench.gpu_floors --out FOLDER

An amount of work is a dict from the name of a ceiling to a number of bytes or operations; its floor is the longest of
their times. Work that is not counted (draws, exponentials, launches) makes a floor too low, never too high.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from bench.gpu_item import parsed
from bench.gpu_measure import device_times, graphed
from bench.gpu_schedule import Rows
from bench.results_file import read

Work = dict[str, float]
COPIES = 10  # in one call, so that a launch does not count
CPU_L2 = 1 << 18  # bytes; for a dry run


def ceilings(folder: Path, device: str) -> Work:
    """Bytes or operations per second by name, as last measured on this kind of device; empty if never."""
    rows = read("gpu", folder)
    return {
        r["ceiling"]: r["per_second"] for r in rows if "ceiling" in r and r["device"] == device and "failed" not in r
    }


def floor_us(work: Work, ceiling: Work) -> float | None:
    """Microseconds; None where a ceiling is not known."""
    if not work or not all(name in ceiling for name in work):
        return None
    return round(max(1e6 * amount / ceiling[name] for name, amount in work.items()), 3)


def l2_bytes(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else CPU_L2


def gather_work(batch: int, k: int, num_data: int, dim: int, width: int, l2: int) -> Work:
    """Both directions: every drawn row is read once; from device memory where the banks do not fit in the L2 cache."""
    read_bytes, banks = 2 * batch * (k + 1) * dim * width, 2 * num_data * dim * width
    distinct = banks * (1 - (1 - min(1.0, k / num_data)) ** batch)  # of the rows, if the cache were infinite
    return {"l2": read_bytes, "memory": max(distinct, read_bytes * max(0.0, 1 - l2 / banks))}


def dense_work(batch: int, k: int, num_data: int, dim: int, width: int, member_bits: int = 1) -> Work:
    """Both directions: scores and gradient are 2 D operations each for every row; banks and masks are read once.

    fp32 factors are three bf16 terms each, whose six largest products count. With draws (k > 0) every
    row and anchor has `member_bits` of membership.
    """
    operations = 2 * batch * num_data * 4 * dim * (1 if width == 2 else 6)
    membership = 2 * batch * num_data * member_bits / 8 if k else 0
    return {"bf16": operations, "memory": 2 * num_data * dim * width + membership}


def draw_work(batch: int, k: int) -> Work:
    return {"memory": 8 * batch * k}  # int64 row numbers are written


def membership_work(batch: int, num_data: int) -> Work:
    return {"memory": batch * num_data / 8}  # a bit per row is written


def update_work(batch: int, dim: int, width: int) -> Work:
    return {"memory": batch * dim * (2 * width + 4)}  # a row is read and written, its fp32 anchor read


def transport_work(n: int, dim: int, iters: int) -> Work:
    """A product for the costs and two for the gradients; a multiply-add for rows and for columns in every iteration."""
    return {"tf32": 6 * n * n * dim, "fp32": 4 * n * n * iters, "memory": 16 * n * dim}


def measure(rows: Rows, device: torch.device) -> None:
    """A row per ceiling."""
    on_gpu = device.type == "cuda"
    l2 = l2_bytes(device)
    for name, size in (("memory", 1 << 30 if on_gpu else 1 << 22), ("l2", l2 // 4)):
        source = torch.ones(size // 4, device=device)
        target = torch.empty_like(source)

        def copies(target=target, source=source) -> None:
            for _ in range(COPIES):
                target.copy_(source)

        def sums(source=source) -> None:
            for _ in range(COPIES):
                source.sum()

        result = {}
        for how, call, moved in (("copy", copies, 2 * size), ("sum", sums, size)):
            best = device_times(graphed(call, device), device, repeats=9)["p20"]
            result[how] = round(COPIES * moved / best * 1e6)
        rows.add({"ceiling": name, "per_second": max(result.values()), "unit": "bytes", "bytes": size, **result})
    side = 8192 if on_gpu else 128
    before = torch.get_float32_matmul_precision()
    for name, dtype, precision in (
        ("bf16", torch.bfloat16, before),
        ("tf32", torch.float32, "high"),
        ("fp32", torch.float32, "highest"),
    ):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        torch.set_float32_matmul_precision(precision)
        try:
            best = device_times(lambda a=a, b=b: a @ b, device, repeats=9)["p20"]
        finally:
            torch.set_float32_matmul_precision(before)
        rows.add({"ceiling": name, "per_second": round(2 * side**3 / best * 1e6), "unit": "operations", "side": side})


def main(arguments: list[str]) -> int:
    options = parsed(__doc__, arguments)
    rows = Rows(options.item, options.out, options.dry_run)
    measure(rows, options.device)
    return rows.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
