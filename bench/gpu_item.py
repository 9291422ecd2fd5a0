"""The command-line options of every item of a GPU schedule."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import torch


def parsed(
    text: str | None, arguments: list[str], more: Callable[[argparse.ArgumentParser], object] = lambda p: None
) -> argparse.Namespace:
    """--item, --out and --dry-run, those that `more` adds, and `device`: the GPU, or the CPU in a dry run."""
    p = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--item", default="by hand", help="the name that its rows carry")
    p.add_argument("--out", type=Path, required=True, help="folder of gpu.jsonl")
    p.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    more(p)
    options = p.parse_args(arguments)
    os.environ.pop("PYTEST_ADDOPTS", None)  # an item chooses its own tests
    options.device = torch.device("cpu" if options.dry_run else "cuda")
    if not options.dry_run and not torch.cuda.is_available():  # which makes no context on the device
        raise SystemExit("expected a CUDA device (or --dry-run); torch sees none")
    return options
