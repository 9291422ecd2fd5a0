"""One JSON line per result, with what is needed to trust it."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def provenance() -> dict[str, Any]:
    """Commit (with a mark for a changed tree), versions, device and threads of this process."""

    def git(*args: str) -> str:
        done = subprocess.run(["git", *args], capture_output=True, text=True, cwd=RESULTS.parent, check=False)
        return done.stdout.strip()

    import wcord_fast

    changed = "+changes" if git("status", "--porcelain", ":/", ":!/bench/results") else ""  # results do not count
    processor = platform.processor() or platform.machine()
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": (git("rev-parse", "--short", "HEAD") or "unknown") + changed,
        "wcord_fast": wcord_fast.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor,
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
