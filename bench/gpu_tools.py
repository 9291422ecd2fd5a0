"""NVIDIA's tools on our kernels, and what the machine has: `environment`, `memcheck`, `racecheck`, `synccheck`, `ncu`.

    python -m bench.gpu_tools --out FOLDER memcheck -- tests/test_gpu_bank.py -k nce
    python -m bench.gpu_tools --out FOLDER ncu -- kernels --shape 64,16384,50000

The arguments after -- go to pytest for the sanitizer's tools, and to bench.gpu_times for ncu. A missing tool makes a
row with that failure. In a dry run a stand-in (bench/gpu_stand_in.py) replaces the tools.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from bench.gpu_item import parsed
from bench.gpu_schedule import MISSING, Rows

SANITIZER_TOOLS = ("memcheck", "racecheck", "synccheck")
PROGRAMS = ("nvcc", "compute-sanitizer", "ncu", "nvidia-smi")
PACKAGES = ("triton", "numpy", "pytest", "pytest-xdist", "hypothesis", "ninja", "pybind11", "setuptools")
OURS = "kns=wcf"  # a part of the mangled names of the native kernels: their namespace
PROFILED = (
    "draw_kernel", "membership_kernel", "gather_rows_kernel", "nce_fwd_kernel", "step_finish_kernel",
    "sinkhorn_kernel",
)  # fmt: skip
METRICS = (
    "gpu__time_duration.sum", "dram__bytes_read.sum", "dram__bytes_write.sum", "lts__t_bytes.sum",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed", "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active", "launch__registers_per_thread",
)  # fmt: skip
WRONG = 9  # exit status of the sanitizer after an error


def find(program: str) -> str | None:
    """On PATH, or where the CUDA toolkit is usually installed."""
    return shutil.which(program) or shutil.which(program, path="/usr/local/cuda/bin")


def tool(program: str, dry_run: bool) -> list[str] | None:
    """The command of a tool, its stand-in in a dry run, or None."""
    if dry_run:
        return [sys.executable, "-m", "bench.gpu_stand_in", program]
    path = find(program)
    return [path] if path else None


def environment(rows: Rows) -> None:
    """One row: device, versions, programs and packages; None for a missing one."""
    smi, gpu = find("nvidia-smi"), {}
    if smi:
        requested = "name,compute_cap,driver_version,memory.total,clocks.max.sm"
        done = subprocess.run(
            [smi, f"--query-gpu={requested}", "--format=csv,noheader"], capture_output=True, text=True
        )
        gpu = dict(zip(requested.split(","), done.stdout.strip().split(", "), strict=False))
    from wcord_fast.ops import native_module

    packages = {name: _version(name) for name in PACKAGES}
    programs = {name: find(name) for name in PROGRAMS}
    lacking = [name for name, value in {**packages, **programs}.items() if value is None]
    row = {"tool": "environment", "gpu": gpu, "cuda": torch.version.cuda, "cores": os.cpu_count()}
    row |= {"machine": platform.platform(), "packages": packages, "programs": programs, "missing": lacking}
    rows.add(row | {"native_module": native_module.unavailable_reason("cpu") or "there"})


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def sanitize(rows: Rows, name: str, arguments: list[str], dry_run: bool) -> int:
    """Runs the tests under one tool of compute-sanitizer, which checks our native kernels only."""
    command = tool("compute-sanitizer", dry_run)
    if command is None:
        rows.add({"tool": name, "failed": "compute-sanitizer is missing"})
        return MISSING
    text = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False).stdout
    chosen = "--kernel-name" if "--kernel-name" in text else "--kernel-regex"  # the newer and the older spelling
    command += ["--tool", name, chosen, OURS, "--target-processes", "all", "--error-exitcode", str(WRONG)]
    command += [sys.executable, "-m", "pytest", "-q", "-s", "-m", "gpu", "-p", "no:cacheprovider", "-n", "0"]
    command += ["-p", "bench.gpu_pytest", "--gpu-seconds", "1000"]  # a test is slow here, and the item has its limit
    command += ["--gpu-out", str(rows.out), "--gpu-item", name]
    command += [*arguments, *(["--collect-only"] if dry_run else [])]
    # PyTorch's allocator would hand out pieces of large blocks, in which an access past the end of one goes unseen.
    env = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
    assert process.stdout is not None
    summary, last = "", ""
    for line in process.stdout:
        print(line, end="", flush=True)
        summary = line.strip("= \n") if "SUMMARY" in line else summary
        last = line.strip() or last
    code = process.wait()
    row = {"tool": name, "exit": code, "summary": summary, "tests": last}
    rows.add(row if code == 0 else row | {"failed": summary or last})
    return code


def profile(rows: Rows, arguments: list[str], out: Path, dry_run: bool) -> int:
    """Reads a few counters of our kernels by ncu: a row per launch."""
    command = tool("ncu", dry_run)
    if command is None:
        rows.add({"tool": "ncu", "failed": "ncu is missing"})
        return MISSING
    log = out / "gpu-ncu.csv"
    log.unlink(missing_ok=True)
    command += ["--clock-control", "none", "--profile-from-start", "off", "--target-processes", "all"]
    command += ["--kernel-name-base", "function", "--kernel-name", f"regex:^({'|'.join(PROFILED)})$"]
    command += ["--metrics", ",".join(METRICS), "--csv", "--print-units", "base", "--log-file", str(log)]
    command += [sys.executable, "-m", "bench.gpu_once", *arguments, "--out", str(out)]
    command += ["--dry-run"] if dry_run else []
    code = subprocess.run(command, check=False).returncode
    launches = counters(log.read_text(errors="replace")) if log.exists() else []
    for row in launches:
        rows.add({"tool": "ncu", **row})
    absent = sorted(set(PROFILED) - {row["kernel"] for row in launches})
    if code or (absent and not dry_run):
        why = f"no counters of {', '.join(absent)}" if absent else f"ncu ended with {code}"
        rows.add({"tool": "ncu", "exit": code, "failed": why})
    return code


def counters(text: str) -> list[dict[str, Any]]:
    """A dict per launch from ncu's CSV: kernel, grid, block, and each metric with its unit in its name."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    result: dict[str, dict[str, Any]] = defaultdict(dict)
    for line in csv.DictReader(lines):
        launch = result[line["ID"]]
        launch |= {"kernel": line["Kernel Name"], "grid": line["Grid Size"], "block": line["Block Size"]}
        name = f"{line['Metric Name']} [{line['Metric Unit']}]"
        try:
            launch[name] = float(line["Metric Value"].replace(",", ""))
        except ValueError:
            launch[name] = line["Metric Value"]
    return list(result.values())


def main(arguments: list[str]) -> int:
    def more(p: argparse.ArgumentParser) -> None:
        p.add_argument("tool", choices=("environment", *SANITIZER_TOOLS, "ncu"))
        p.add_argument("rest", nargs="*", help="after --")

    options = parsed(__doc__, arguments, more)
    rows = Rows(options.item, options.out, options.dry_run)
    code = 0
    if options.tool == "environment":
        environment(rows)
    elif options.tool == "ncu":
        code = profile(rows, options.rest, options.out, options.dry_run)
    else:
        code = sanitize(rows, options.tool, options.rest, options.dry_run)
    return rows.close() if code in (0, WRONG) else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
