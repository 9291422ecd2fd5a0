"""Compiles the Triton kernels that later items need, while the native module is being built.

    python -m bench.gpu_warm --number 0 --of 12 --out FOLDER

One of several processes: it runs cases[number::of] of the chosen tests and of the forms that bench.gpu_times measures.
Results mean nothing: there may be no native module yet, masks are empty, rows of banks are alike, and what fails
here is reported by the item that runs it later.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from unittest import mock

import pytest
import torch
from torch import Tensor

from bench import bank_providers, gpu_forms, gpu_times
from bench.gpu_item import parsed
from bench.gpu_items import SHAPES, TINY, TRITON_TESTS
from bench.gpu_schedule import Rows
from wcord_fast import NegativeSampler
from wcord_fast.nn import memory_bank
from wcord_fast.ops.bank import triton_launch

STREAMING = 4096  # rows of a transport problem that fits neither of the native kernels


class Hollow(bank_providers.Case):
    """The sizes of a case without its data, which no choice of a kernel depends on."""

    def __post_init__(self) -> None:
        self.anchors = torch.zeros(2, self.batch, self.dim)
        self.banks = [torch.zeros(self.num_data, self.dim) for _ in range(2)]
        self.index = torch.arange(self.batch)
        self.sampler = NegativeSampler(self.num_data, self.k, labels=torch.arange(self.num_data) % 100, seed=1)
        self.log_z = torch.zeros(2)


def empty_mask(index: Tensor, num_data: int, _spec, _backend: str, held: tuple[int, int] | None = None) -> Tensor:
    words = ((held or (0, num_data))[1] + 31) // 32
    return torch.zeros(index.shape[0], words, dtype=torch.int32, device=index.device)


def equal_rows(rows: Tensor, *_: int) -> None:
    rows.fill_(rows.shape[1] ** -0.5)


def forms(device: torch.device, dry_run: bool) -> Iterator[tuple[str, Callable[[], object]]]:
    """A name and a call for every form of bench.gpu_times that takes Triton on a GPU."""
    for shape in [TINY] if dry_run else SHAPES:
        dim = gpu_times.TINY_DIM if dry_run else gpu_times.DIM
        for timed in [
            *gpu_forms.steps(Hollow(*shape, dim), device),
            *gpu_forms.modules(*shape, dim, device),
        ]:
            if timed.row["form"].startswith("dense"):
                yield f"{timed.row}", lambda timed=timed: timed.make()()
    for solver, eps, n in gpu_forms.TRANSPORT:
        if n == STREAMING and not dry_run:
            timed = next(gpu_forms.transport(solver, eps, n, gpu_times.DIM, device))
            yield f"{timed.row}", lambda timed=timed: timed.make()()


class Collected:
    """A plug-in of pytest that keeps the ids of the chosen tests."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.ids += [item.nodeid for item in session.items]


def tests() -> list[str]:
    """The ids of the tests whose kernels are Triton's."""
    collected = Collected()
    for arguments in TRITON_TESTS:
        pytest.main(["--collect-only", "-qq", "-m", "gpu", "-n", "0", *arguments], plugins=[collected])
    return collected.ids


def main(arguments: list[str]) -> int:
    def more(p: argparse.ArgumentParser) -> None:
        p.add_argument("--number", type=int, required=True, help="of this process")
        p.add_argument("--of", type=int, required=True, help="how many there are")

    options = parsed(__doc__, arguments, more)
    os.nice(10)  # the build comes first
    torch.set_num_threads(1)
    mine, failed = tests()[options.number :: options.of], 0
    if mine and not options.dry_run:  # in a process of its own, which a bad kernel may spoil
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "-n", "0", "--tb=line"]
        subprocess.run([*command, *mine], check=False)
    cases = list(forms(options.device, options.dry_run))[options.number :: options.of]
    with (
        mock.patch.object(triton_launch, "draw_mask", empty_mask),
        mock.patch.object(memory_bank, "bank_init_", equal_rows),  # without the native module: 20 s for a large bank
    ):
        for name, call in cases:
            try:
                call()
            except Exception as error:
                failed += 1
                print(f"{name}: {type(error).__name__}: {error}", flush=True)
    rows = Rows(options.item, options.out, options.dry_run)
    rows.add({"case": "warm", "tests": len(mine), "forms": len(cases), "forms_that_raised": failed})
    return rows.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
