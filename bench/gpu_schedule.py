"""A schedule of commands under one deadline. Each runs in a process of its own, and has its seconds and its result row.

An item may use its own seconds and those that earlier items have left. No item can use the seconds of a later one.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from bench.contest import BASES
from bench.results_file import append

MISSING = 3  # exit status of an item whose tool or data is missing
STOPPED = 124  # exit status of an item that was stopped at its limit
LEAST = 0.5  # least seconds with which an item is begun
Row = dict[str, Any]
NO_MORE = re.compile(  # CUDA's words for errors after which a process gets nothing else from its device
    r"illegal memory access|misaligned address|unspecified launch failure|device-side assert|illegal instruction|"
    r"launch timed out|uncorrectable|cudaErrorIllegalAddress|hardware stack error|invalid program counter|"
    r"not supported on global/shared address space|peer GPU memory|Tensor Memory not completely freed|"
    r"CUDA error: unknown error|launch failed because"
)


@dataclass(frozen=True)
class Item:
    """One command.

    Attributes:
        name: the item's name in its rows.
        command: program and arguments.
        seconds: the item's part of the budget.
        env: environment variables in addition to this process's.
    """

    name: str
    command: list[str]
    seconds: float
    env: dict[str, str] = field(default_factory=dict)


Schedule = list[list[Item]]  # groups, one after another; the items of a group run side by side


class Rows:
    """The result file of an item: every row is in the file and on the terminal as soon as it is added."""

    def __init__(self, item: str, out: Path, dry_run: bool):
        self.common = {"item": item, **({"dry_run": True} if dry_run else {})}
        self.out, self.number, self.bad = out, 0, []  # type: ignore[var-annotated]

    def add(self, row: Row) -> Row:
        row = {**self.common, **row}
        self.number += 1
        if fails(row):
            self.bad.append(str(row.get("form") or row.get("case") or row.get("tool") or self.number))
        append("gpu", [row], self.out)
        print(json.dumps(row), flush=True)
        return row

    def close(self) -> int:
        """The exit status, and a last line with the reason."""
        if self.number == 0:
            print("no row was made", flush=True)
        elif self.bad:
            print(f"{len(self.bad)} of {self.number} rows failed or are wrong: {', '.join(self.bad)}"[:300], flush=True)
        else:
            print(f"{self.number} rows", flush=True)
        return int(bool(self.bad) or self.number == 0)


def fails(row: Row) -> bool:
    """Whether the row's case did not run, or is a wrong result of ours."""
    return "failed" in row or (row.get("right") is False and row.get("form") not in BASES)


class Running:
    """An item's process. Its output goes to the terminal and the log at once."""

    def __init__(self, item: Item, log: TextIO):
        self.item, self.last_line, self.began = item, "no output", time.monotonic()
        self.seconds: float | None = None
        self._log = log
        try:
            self._process: subprocess.Popen[str] | None = subprocess.Popen(
                item.command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # so that its children are stopped with it
                env={**os.environ, "PYTHONUNBUFFERED": "1", **item.env},
            )
        except OSError as error:
            self._process, self.last_line = None, str(error)
            return
        self._reader = threading.Thread(target=self._copy, daemon=True)
        self._reader.start()

    def _copy(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            self.last_line = line.strip() or self.last_line
            text = f"[{self.item.name}] {line.rstrip()}"
            print(text, flush=True)
            print(text, file=self._log, flush=True)

    def ended(self) -> bool:
        if self._process is not None and self._process.poll() is None:
            return False
        if self.seconds is None:
            self.seconds = time.monotonic() - self.began
        return True

    def stop(self) -> None:
        """End the item's processes."""
        if self._process is None:
            return
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)  # a process that waits in the driver may take long to die: the next item begins
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass
        self._reader.join(2)

    def row(self, stopped: bool, limit: float) -> Row:
        code = MISSING if self._process is None else STOPPED if stopped else self._process.returncode
        seconds = round(time.monotonic() - self.began if self.seconds is None else self.seconds, 1)
        row = {"outcome": _outcome(code), "exit": code, "seconds": seconds, "limit_s": round(limit, 1)}
        return row | {"last_line": self.last_line[:500]}


def _outcome(code: int) -> str:
    names = {0: "done", MISSING: "tool is missing", STOPPED: "over its time"}
    return names.get(code) or (f"killed by signal {-code}" if code < 0 else "failed")


def seconds_of(group: list[Item]) -> float:
    """The seconds of a group, whose items run side by side."""
    return max(item.seconds for item in group)


def run(schedule: Schedule, out: Path, budget: float, dry_run: bool = False) -> list[Row]:
    """Run every item; a row for each, written when it ends.

    Raises:
        ValueError: the shares are more than the `budget` of seconds.
    """
    left = sum(map(seconds_of, schedule))
    if left > budget:
        raise ValueError(f"schedule: expected shares of at most {budget:g} s, got {left:g} s")
    deadline, rows = time.monotonic() + budget, []
    out.mkdir(parents=True, exist_ok=True)
    with (out / "gpu.log").open("a") as log:
        for group in schedule:
            left -= seconds_of(group)
            limit = deadline - left - time.monotonic()
            rows += _run_group(group, limit, out, log, dry_run)
    return rows


def _run_group(group: list[Item], limit: float, out: Path, log: TextIO, dry_run: bool) -> list[Row]:
    rows, ends = [], time.monotonic() + limit
    if limit < LEAST:
        texts = {"outcome": "left out", "exit": STOPPED, "last_line": "no time was left"}
        return [Rows(item.name, out, dry_run).add(texts) for item in group]
    for item in group:
        print(f"+ {' '.join(item.command)}  (at most {limit:.0f} s)", flush=True)
    running = [Running(item, log) for item in group]
    while running:
        late = time.monotonic() > ends
        for one in [one for one in running if late or one.ended()]:
            stopped = not one.ended()
            one.stop()
            rows.append(Rows(one.item.name, out, dry_run).add(one.row(stopped, limit)))
            running.remove(one)
        time.sleep(0.05)
    return rows
