"""Runs every call of bench.gpu_times once, between the profiler's start and stop, for ncu."""

from __future__ import annotations

import sys

import torch

from bench import gpu_times
from bench.gpu_measure import synchronize

# The forms that are profiled, each with one dtype of the bank.
FORMS = {"draw": "fp32", "membership": "fp32", "gather": "bf16", "dense": "bf16", "ours": "bf16"}


def main(arguments: list[str]) -> int:
    options = gpu_times.options_of(arguments)
    for timed in gpu_times.all_cases(options):
        if timed.row["form"] not in FORMS or timed.row.get("bank", "bf16") not in FORMS[timed.row["form"]]:
            continue
        call = timed.make()
        call()  # compiles, and fills the cache
        synchronize(options.device)
        if options.device.type == "cuda":
            torch.cuda.profiler.start()
        call()
        synchronize(options.device)
        if options.device.type == "cuda":
            torch.cuda.profiler.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
