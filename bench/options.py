"""The options that all subjects have, and the function that writes their rows."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.measure import CLOCKS
from bench.results_file import RESULTS, append


def parser(subject: str, text: str | None, quick: str) -> argparse.ArgumentParser:
    """--threads, --clock, --repeats, --quick and --out; `quick` says what --quick measures."""
    p = argparse.ArgumentParser(
        prog=f"python -m bench {subject}", description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu, with one thread, on a machine with other work")
    p.add_argument("--repeats", type=int, default=7)
    p.add_argument("--quick", action="store_true", help=f"{quick}, 3 repeats, nothing written without --out")
    p.add_argument("--out", type=Path, help=f"folder of {subject}.jsonl (default bench/results)")
    return p


def add_shapes(p: argparse.ArgumentParser, names: str, shapes: Sequence[tuple[int, ...]]) -> None:
    """--shapes, of numbers like `names` ("B,K,N"), by default `shapes`; and --dim."""

    def shape(text: str) -> tuple[int, ...]:
        numbers = tuple(int(x) for x in text.split(","))
        if len(numbers) != names.count(",") + 1:
            raise ValueError
        return numbers

    shape.__name__ = names  # argparse: "invalid B,K,N value: '64,1'"
    p.add_argument("--shapes", nargs="+", type=shape, help=f"{names} each", default=list(shapes))
    p.add_argument("--dim", type=int, default=128)


def parsed(p: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """The options, checked and with --quick's number of repeats; torch's threads are set."""
    options = p.parse_args(arguments)
    if options.clock == "cpu" and options.threads > 1:
        p.error("--clock cpu adds up the time of all threads: use it with --threads 1")
    torch.set_num_threads(options.threads)
    if options.quick:
        options.repeats = min(3, options.repeats)
    return options


def keep(subject: str, rows: list[dict[str, Any]], options: argparse.Namespace, device_kind: str = "cpu") -> None:
    """Append the rows to the subject's result file; with --quick only if --out names a folder."""
    if options.out is None and options.quick:
        return
    text = [{"subject": subject, "device_kind": device_kind, **row} for row in rows]
    print("written to", append(subject, text, options.out or RESULTS))
