"""Instructions per unit of work of the GPU kernels, from their machine code, without a GPU.

    python -m bench counts [--only PATTERN] [--targets sm_90 ...] [--quick]

A model, not a measurement: the instructions of the cheapest round of a main loop (bench/machine_code.py), added
over the ways of its warps; what they cost if every scheduler at 1.755 GHz of the multiprocessors that share the work,
132 or one for a single block, issued one in every cycle; and the floor of the same work, its bytes and operations on an
H200: memory and products by its data sheet, the L2 cache at an assumed 6 TB/s, which sets the gathers.
Nothing waits for memory, for a result or at a barrier in it.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench import counts_triton
from bench.counts_kernels import KERNELS, WARP, Kernel
from bench.gpu_floors import Work, floor_us
from bench.machine_code import Block, cheapest_round, functions, resources
from bench.options import keep
from bench.results_file import RESULTS

CSRC = RESULTS.parent.parent / "csrc" / "cuda"
TARGETS = ("sm_80", "sm_90", "sm_100", "sm_120")
SCHEDULERS, CLOCK = 4, 1.755e9
CEILINGS: Work = {"memory": 4.8e12, "l2": 6e12, "bf16": 989e12, "fp32": 67e12}  # bytes or operations a second
SHARED = {"sm_80": 164, "sm_90": 228, "sm_100": 228, "sm_120": 100}  # KB of a multiprocessor
THREADS = {"sm_120": 1536}  # of a multiprocessor, else 2,048
REGISTERS, BLOCKS, RESERVED = 1 << 16, 32, 1 << 10
Codes = dict[str, list[Block]]
Resources = dict[str, dict[str, int]]
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def compiler() -> str | None:
    """nvcc's release; None without nvcc."""
    if NVCC is None:
        return None
    version = subprocess.run([NVCC, "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"release ([\d.]+)", version)
    return match[1] if match else None


def compiled(source: str, target: str, folder: Path) -> Path:
    """The binary of a file of csrc/cuda, with the source line of every instruction."""
    result = folder / f"{source}.{target}.cubin"
    # Run in an empty folder: nvcc would take a cuda_runtime.h beside it for its own.
    command = [str(NVCC), "-std=c++17", "-O3", "-lineinfo", f"-arch={target}", "-cubin", "-o", str(result)]
    subprocess.run([*command, str(CSRC / source)], cwd=folder, check=True, capture_output=True)
    return result


def resident(target: str, registers: int, threads: int, shared: int) -> int:
    """How many blocks a multiprocessor holds at once."""
    per_warp = -(-registers * WARP // 256) * 256
    return min(
        BLOCKS,
        THREADS.get(target, 2048) // threads,
        REGISTERS // (per_warp * (threads // WARP)),
        SHARED[target] * 1024 // (shared + RESERVED),
    )


def row(kernel: Kernel, target: str, codes: Codes, used: Resources) -> dict[str, Any]:
    """The count of one kernel. ValueError if it, or its loop, is not in the binary."""
    names = [name for name in codes if re.search(kernel.symbol, name)]
    if len(names) != 1:
        raise ValueError(f"symbol: expected one function like {kernel.symbol!r}, got {names}")
    registers, spilled = used[names[0]]["registers"], used[names[0]]["stack"]
    classes: Counter[str] = Counter()
    for way in kernel.ways:
        for name, number in cheapest_round(codes[names[0]], way.through, way.trips).items():
            classes[name] += way.warps * number  # type: ignore[assignment]
    count = sum(classes.values()) / kernel.units
    bound = 1e6 * count * kernel.total / (SCHEDULERS * kernel.processors * CLOCK)
    floor = floor_us(kernel.work, CEILINGS)
    blocks = resident(target, registers, kernel.threads, kernel.dynamic_shared)
    return {
        "kernel": kernel.name,
        "target": target,
        "unit": kernel.unit,
        "instructions": round(count, 1),
        "classes": {name: round(n / kernel.units, 2) for name, n in classes.most_common()},
        "registers": registers,
        "spilled_bytes": spilled,
        "shared_bytes": kernel.dynamic_shared,
        "blocks_per_sm": blocks,
        "occupancy_percent": round(100 * blocks * kernel.threads / THREADS.get(target, 2048)),
        "bound_us": round(bound, 1),
        "floor_us": floor,
        "percent_of_floor": round(100 * floor / max(bound, floor)) if floor else None,
    }


def rows(only: str = "", targets: Iterable[str] = TARGETS) -> Iterator[dict[str, Any]]:
    """A row for each kernel whose name has the pattern `only`, and each target, of the compilers that are there."""
    targets = tuple(targets)
    kernels = [k for k in KERNELS if re.search(only, k.name)] if NVCC else []
    wanted = [(source, target) for source in sorted({k.source for k in kernels}) for target in targets]
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(2) as pool:
        done = pool.map(lambda pair: compiled(pair[0], pair[1], Path(name)), wanted)
        for (source, target), cubin in zip(wanted, done, strict=True):
            codes, used = functions(cubin), resources(cubin)
            for kernel in kernels:
                if kernel.source == source:
                    yield {**row(kernel, target, codes, used), "compiler": f"nvcc {compiler()}"}
        if counts_triton.unavailable_reason() is None:
            yield from counts_triton.rows(row, re.compile(only).search, targets, Path(name))


def latest(result: Iterable[dict[str, Any]]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """The last row of each kernel, target and compiler."""
    return {(r["kernel"], r["target"], r["compiler"]): r for r in result}


def main(arguments: list[str]) -> int:
    p = argparse.ArgumentParser(
        prog="python -m bench counts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--only", default="", help="a pattern of the kernels' names")
    p.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS)
    p.add_argument("--quick", action="store_true", help="nothing is written without --out")
    p.add_argument("--out", type=Path, help="folder of counts.jsonl (default bench/results)")
    options = p.parse_args(arguments)
    if NVCC is None and (reason := counts_triton.unavailable_reason()):
        p.error(f"nvcc was found neither on the path nor in /usr/local/cuda/bin, and {reason}")
    result = []
    for line in rows(options.only, options.targets):
        print(json.dumps(line), flush=True)
        result.append(line)
    keep("counts", result, options, "none")
    return 0
