"""`python -m bench plan`: what a step on a sharded bank is made of, measured on one core of a CPU, and the plan of
docs/distributed.md for 10^9 rows on 64 GPUs, which is computed from it.

Measured: nanoseconds of making a draw and dropping it, and of scoring a row with its gradient (a step on 1 / 64 of a
bank, and on all of it, make the same draws and score 64 times the rows), and bytes checksummed in a second.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from wcord_fast import MemoryBank, NegativeSampler
from wcord_fast.distributed.ranks import Ranks, part_rows
from wcord_fast.ops.bank import part as parts

from . import results_file
from .report_tables import short, table, where
from .sharded import DIM, arithmetic

ROWS, NEGATIVES, BATCH, PARTS = 2_000_000, 65_536, 64, 64  # measured
N, W, EACH = 10**9, 64, 64  # planned: rows, GPUs, images on each
NETWORK, MEMORY, DISK = 25e9, 4e12, 2e9  # assumed: bytes per second of each GPU, each GPU, each rank


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench plan", description=__doc__.partition(":")[2])
    parser.add_argument("--out", type=Path, help="a directory in place of bench/results")
    args = parser.parse_args(argv)
    row = {"bench": "plan", "rows": ROWS, "negatives": NEGATIVES, "batch": BATCH, "parts": PARTS, **primitives()}
    print(", ".join(f"{name} {value:.3g}" for name, value in row.items() if isinstance(value, float)))
    print(f"appended to {results_file.append('plan', [row], args.out)}")
    return 0


def primitives() -> dict[str, float]:
    """ns_draw, ns_row and checksum_gb_s of one core."""
    torch.set_num_threads(1)
    banks = [MemoryBank(ROWS, DIM, dtype=torch.bfloat16, seed=0, bank_id=side).rows for side in (0, 1)]
    spec = NegativeSampler(ROWS, NEGATIVES, exclude="self", seed=0).spec()
    g = torch.Generator().manual_seed(0)
    anchors = torch.nn.functional.normalize(torch.randn(2, BATCH, DIM, generator=g), dim=2)
    index = torch.randint(ROWS, (BATCH,), generator=g)
    log_z, content = torch.full((2,), 8.0), os.urandom(1 << 26)

    def step(height: int) -> Callable[[], Any]:
        held, part = [bank[:height] for bank in banks], parts.Part(0, ROWS)
        return lambda: parts.nce(anchors, held, part, index, log_z, spec, 0.07, True, "gather", "native")

    few, all_, check = _seconds(step(ROWS // PARTS), step(ROWS), lambda: zlib.crc32(content))
    draws, rows = BATCH * NEGATIVES, 2 * BATCH * NEGATIVES
    row = (all_ - few) / (rows * (1 - 1 / PARTS))
    return {
        "ns_row": 1e9 * row,
        "ns_draw": 1e9 * (few - row * rows / PARTS) / draws,
        "checksum_gb_s": len(content) / check / 1e9,
    }


def plan_table(rows: list[dict[str, Any]]) -> str:
    """The plan, from its formulas, the assumptions above and the last row of `rows`."""
    last, batch = rows[-1], W * EACH
    each = len(part_rows(N, Ranks(0, W)))
    bank, sent = 2 * each * DIM * 2, arithmetic(batch, W)
    scored, draws = 2 * batch * NEGATIVES // W, batch * NEGATIVES
    core_s = (draws * last["ns_draw"] + scored * last["ns_row"]) / 1e9
    lines = [
        ["rows of a bank", f"{each:,}", "ceil(N / W)"],
        ["both banks", f"{bank / 1e9:.1f} GB", f"2 x {each / 1e6:.1f} M x {DIM} x 2 bytes"],
        [
            'class tables, `exclude="class"` only',
            f"{3 * 4 * N / 1e9:.0f} GB",
            'label, order, rank: int32 of all N rows on every rank; none with "self"',
        ],
        [
            "sent in a step",
            f"{sent / 1e6:.1f} MB",
            f"{W - 1} (8 + {EACH} x {2 * DIM * 4 + 8}) + {batch - EACH} x {2 * (1 + DIM) * 4} bytes",
        ],
        [
            f"time of that, assumed {NETWORK / 1e9:.0f} GB/s a GPU (200 Gb/s network each)",
            f"{1000 * sent / NETWORK:.2f} ms",
            "twice that at half the bandwidth",
        ],
        ["rows scored", f"{scored / 1e6:.1f} M", "2 B K / W"],
        [
            f"time of their bytes, assumed {MEMORY / 1e12:.0f} TB/s",
            f"{1000 * scored * DIM * 2 / MEMORY:.1f} ms",
            "256 bytes a row, each fetched once",
        ],
        ["draws made", f"{draws / 1e6:.0f} M", "B K, on every GPU"],
        [
            "**measured** on one CPU core: draws",
            f"{draws * last['ns_draw'] / 1e9:.2f} s",
            f"{last['ns_draw']:.2g} ns a draw",
        ],
        [
            "**measured** on one CPU core: rows",
            f"{scored * last['ns_row'] / 1e9:.2f} s",
            f"{last['ns_row']:.0f} ns a row, with its gradient",
        ],
        ["both, on one core in place of the GPU", f"{short(core_s)} s", "the draws do not shrink with W"],
        [
            f"checkpoint, all ranks at once, assumed {DISK / 1e9:.0f} GB/s a rank",
            f"{bank / DISK + bank / last['checksum_gb_s'] / 1e9:.0f} s",
            f"{bank / DISK:.0f} s to write, then its checksum, **measured** {last['checksum_gb_s']:.1f} GB/s",
        ],
    ]
    return table(["", "per GPU", ""], lines) + f"\n{where([last])}. `python -m bench plan`.\n"


def _seconds(*calls: Callable[[], Any]) -> list[float]:
    """Median processor seconds of each, five times in turns after one that does not count."""
    taken: list[list[float]] = [[] for _ in calls]
    for turn in range(6):
        for call, own in zip(calls, taken, strict=True):
            began = time.process_time()
            call()
            if turn:
                own.append(time.process_time() - began)
    return [statistics.median(own) for own in taken]
