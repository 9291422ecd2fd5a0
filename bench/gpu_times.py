"""Times on a GPU, a row per form as soon as it is measured: `kernels`, `steps`, `modules` or `transport`.

    python -m bench.gpu_times kernels steps modules --shape 64,16384,50000 --out FOLDER
    python -m bench.gpu_times transport --sizes 64 256 --out FOLDER

A row has eager time, time as a replay of a CUDA graph, launches and kernels by name, peak memory, error, and the share
of the floor that the ceilings in the same folder give (bench/gpu_floors.py). Microseconds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch

from bench import gpu_forms as forms
from bench.bank_providers import Case
from bench.gpu_floors import Work, ceilings, floor_us
from bench.gpu_forms import Timed
from bench.gpu_item import parsed
from bench.gpu_measure import device_times, eager_times, graphed, launches, peak_megabytes, tried
from bench.gpu_schedule import NO_MORE, Rows
from bench.results_file import device_name
from wcord_fast.ops import status

SUBJECTS = ("kernels", "steps", "modules", "transport")
SLOW = 1024  # rows of a transport problem above which other forms are timed eagerly only
DIM, TINY_DIM = 128, 16


def cases(subjects: list[str], shape: tuple[int, int, int] | None, sizes: list[int], dim: int, device: torch.device):
    """Every call of the subjects at a shape (B, K, N) and at transport problems of `sizes` rows."""
    case = Case(*shape, dim) if shape and {"kernels", "steps"} & set(subjects) else None
    for subject in subjects:
        if subject == "transport":
            for solver, eps, n in forms.TRANSPORT:
                if n in sizes:
                    yield from forms.transport(solver, eps, n, dim, device)
        elif shape is None:
            raise ValueError(f"{subject}: expected --shape B,K,N")
        elif subject == "modules":
            yield from forms.modules(*shape, dim, device)
        else:
            assert case is not None
            yield from (forms.kernels if subject == "kernels" else forms.steps)(case, device)


def measure(timed: Timed, device: torch.device, ceiling: Work) -> dict[str, Any]:
    """The row of a call."""

    def fill(row: dict[str, Any]) -> None:
        call = timed.make()
        row |= timed.check(call)
        row["peak_mb"] = peak_megabytes(call, device)
        row["eager_us"] = eager_times(call, device)
        row |= launches(call, device)
        if timed.eager_only is None:
            row["graph_us"] = device_times(graphed(call, device), device)
        else:
            row["no_graph"] = timed.eager_only
        least = floor_us(timed.work, ceiling)
        if least is not None and "graph_us" in row:
            row |= {"floor_us": least, "percent_of_floor": round(100 * least / row["graph_us"]["p50"], 1)}
        status.check()

    return tried(dict(timed.row), fill)


def slow(timed: Timed) -> Timed:
    if timed.row["subject"] == "transport" and timed.row["form"] != "ours" and timed.row["n"] > SLOW:
        timed.eager_only = "its eager time says enough"
    return timed


def options_of(arguments: list[str]) -> argparse.Namespace:
    def shape(text: str) -> tuple[int, ...]:
        batch, k, num_data = map(int, text.split(","))
        return batch, k, num_data

    def more(p: argparse.ArgumentParser) -> None:
        p.add_argument("subjects", nargs="+", choices=SUBJECTS)
        p.add_argument("--shape", type=shape, metavar="B,K,N")
        p.add_argument("--sizes", type=int, nargs="+", default=[], help="rows of the transport problems")
        p.add_argument("--skip", type=int, default=0, help="forms that have had their turn")

    options = parsed(__doc__, arguments, more)
    options.dim = TINY_DIM if options.dry_run else DIM
    options.again = arguments
    return options


def all_cases(options: argparse.Namespace) -> Iterator[Timed]:
    return cases(options.subjects, options.shape, options.sizes, options.dim, options.device)


def main(arguments: list[str]) -> int:
    options = options_of(arguments)
    rows = Rows(options.item, options.out, options.dry_run)
    ceiling = ceilings(options.out, device_name())
    for done, timed in enumerate(islice(all_cases(options), options.skip, None), options.skip + 1):
        row = rows.add(measure(slow(timed), options.device, ceiling))
        if NO_MORE.search(row.get("failed", "")):
            print("the device is of no more use to this process: another one goes on", flush=True)
            command = [sys.executable, "-m", "bench.gpu_times", *options.again, "--skip", str(done)]
            return subprocess.run(command, check=False).returncode or 1
    return rows.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
