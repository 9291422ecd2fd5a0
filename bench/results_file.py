"""One JSON line per result, with the commit, machine and versions that it depends on."""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


@functools.cache
def commit() -> str:
    """The commit, with a mark for a changed tree. Without a repository, the value of BENCH_COMMIT."""

    def git(*args: str) -> str:
        try:
            done = subprocess.run(["git", *args], capture_output=True, text=True, cwd=RESULTS.parent, check=False)
        except FileNotFoundError:
            return ""
        return done.stdout.strip()

    changed = "+changes" if git("status", "--porcelain", ":/", ":!/bench/results") else ""  # results do not count
    return (git("rev-parse", "--short", "HEAD") or os.environ.get("BENCH_COMMIT", "unknown")) + changed


@functools.cache  # so that rows can still be written when the device no longer answers
def device_name() -> str:
    """The GPU's, or the processor's without one."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()


def provenance() -> dict[str, Any]:
    """Commit, versions, device and threads of this process."""
    import wcord_fast

    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit(),
        "wcord_fast": wcord_fast.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device_name(),
        "threads": torch.get_num_threads(),
    }


def append(name: str, rows: list[dict[str, Any]], out: Path | None = None) -> Path:
    """Append `rows` to bench/results/`name`.jsonl (or under `out`)."""
    path = (out or RESULTS) / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    common = provenance()
    with path.open("a") as f:
        for row in rows:
            f.write(json.dumps({**row, **common}) + "\n")
    return path


def read(name: str, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The rows of a result file, oldest first; none without the file."""
    path = folder / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
