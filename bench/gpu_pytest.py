"""A plug-in of pytest that writes the outcome of each GPU test at once, and the command that runs pytest with it.

    python -m bench.gpu_pytest --out FOLDER -- tests/test_gpu_bank.py -k "nce"

A failure is printed with its traceback when it happens. After a test that hangs, or that leaves the device unusable
for its process, pytest is begun anew with the tests that have not had their turn. In a dry run tests are only
collected.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu_item import parsed
from bench.gpu_schedule import NO_MORE, Row, Rows
from bench.results_file import read

HUNG, DEAD = 87, 86  # exit statuses of pytest's process
NO_TEST = 5  # pytest's own, when nothing was chosen
TEST_SECONDS = 25.0


class Recorder:
    """Writes a row for every test, prints failures, and ends a process that can do no more."""

    def __init__(self, config: pytest.Config):
        self.rows = Rows(config.getoption("--gpu-item"), Path(config.getoption("--gpu-out")), False)
        self.seconds = float(config.getoption("--gpu-seconds"))
        self.alone = not config.getoption("numprocesses", None)  # no pytest-xdist
        self.is_worker = hasattr(config, "workerinput")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        watch = threading.Timer(self.seconds, self._hung, [item.nodeid])
        watch.daemon = True
        watch.start()
        try:
            return (yield)
        finally:
            watch.cancel()

    def _hung(self, test: str) -> None:
        faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
        if not self.is_worker:  # pytest-xdist itself reports a worker that has died
            self._add(test, "hung", self.seconds, f"ran for more than {self.seconds:g} s")
        os._exit(HUNG)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if (
            self.is_worker
            or (report.when != "call" and report.passed)
            or (report.when == "teardown" and report.skipped)
        ):
            return
        text = report.longreprtext if report.failed else ""
        if text:
            print(f"\n{report.nodeid} FAILED in {report.when}\n{text}", flush=True)
        self._add(report.nodeid, report.outcome, report.duration, _reason(report))
        if self.alone and NO_MORE.search(text):
            print("the device is of no more use to this process", flush=True)
            os._exit(DEAD)

    def _add(self, test: str, outcome: str, seconds: float, why: str) -> None:
        row: Row = {"test": test, "outcome": outcome, "seconds": round(seconds, 3)}
        if outcome in ("failed", "hung"):
            row["failed"] = why
        elif why:
            row["why"] = why
        self.rows.add(row)


def _reason(report: pytest.TestReport) -> str:
    """The line that says why a test failed or was skipped."""
    if report.skipped and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])[:500]
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash else report.longreprtext)[:500]


def pytest_collection_finish() -> None:
    """Let the reference on the CPU use every core. conftest.py sets one thread, for many workers."""
    torch.set_num_threads(os.cpu_count() or 1)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("rows of GPU tests")
    group.addoption("--gpu-out", help="folder of gpu.jsonl")
    group.addoption("--gpu-item", default="tests", help="the name that the rows carry")
    group.addoption("--gpu-seconds", default=TEST_SECONDS, type=float, help="after which a test is said to hang")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--gpu-out"):
        config.pluginmanager.register(Recorder(config))


def main(arguments: list[str]) -> int:
    def more(p: argparse.ArgumentParser) -> None:
        p.add_argument("--workers", type=int, default=0, help="of pytest-xdist, where it is installed")
        p.add_argument("pytest", nargs="+", help="pytest's arguments, after --")

    options = parsed(__doc__, arguments, more)
    chosen = ["-q", "-s", "-m", "gpu", "-p", "no:cacheprovider", *options.pytest]
    if options.dry_run:
        return _exit_status(int(pytest.main([*chosen, "--collect-only", "-n", "0"])), 0)
    command = [sys.executable, "-m", "pytest", *chosen]
    command += ["-p", "bench.gpu_pytest", "--gpu-out", str(options.out), "--gpu-item", options.item]
    if options.workers and _has_xdist():
        command += ["-n", str(options.workers), "--gpu-seconds", str(4 * TEST_SECONDS)]
    before = len(read("gpu", options.out))
    deselected: list[str] = []
    while True:
        code = subprocess.run([*command, *deselected], check=False).returncode
        rows = [r for r in read("gpu", options.out)[before:] if r["item"] == options.item and "test" in r]
        bad = sum("failed" in r for r in rows)
        done = [word for r in rows for word in ("--deselect", r["test"])]
        if code not in (HUNG, DEAD) or len(done) == len(deselected):
            return _exit_status(0 if code == NO_TEST and rows else code, bad)
        deselected = done


def _exit_status(code: int, bad: int) -> int:
    if code == NO_TEST:
        print("no test was chosen", flush=True)
    if bad:
        print(f"{bad} tests failed", flush=True)
    return code or int(bad > 0)


def _has_xdist() -> bool:
    import importlib.util

    return importlib.util.find_spec("xdist") is not None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
