"""`python -m bench SUBJECT [options]` runs bench/SUBJECT.py: measurements, appended to bench/results/ as JSON lines.

`python -m bench --quick [--out FOLDER]` runs the small cases of every CPU subject, each in a process of its own, with
their gates; nothing is written without --out. Exits with 1 if one of ours is wrong.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import time

SUBJECTS = (
    "accuracy", "bank", "bank_critics", "baselines", "batch", "counts", "critic", "host", "launches", "ot", "ot_matrix",
    "plan", "project", "recipe", "report", "sharded", "step", "update", "wheels",
)  # fmt: skip
QUICK = ("bank", "bank_critics", "batch", "critic", "host", "update", "ot", "baselines", "step")


def quick(arguments: list[str]) -> int:
    p = argparse.ArgumentParser(prog="python -m bench", description=__doc__.split("\n\n")[1])
    p.add_argument("--quick", action="store_true", required=True)
    p.add_argument("--out", help="folder of the result files (default: nothing is written)")
    options = p.parse_args(arguments)
    more = ["--out", options.out] if options.out else []
    took: dict[str, float] = {}
    wrong = []
    for subject in QUICK:
        print(f"\n== {subject}", flush=True)
        command = [sys.executable, "-m", "bench", subject, "--quick", *more]
        begun = time.perf_counter()
        if subprocess.run(command, check=False).returncode:
            wrong.append(subject)
        took[subject] = time.perf_counter() - begun
    each = ", ".join(f"{subject} {seconds:.0f}" for subject, seconds in took.items())
    print(f"\n{sum(took.values()):.0f} s ({each}):", end=" ")
    print(f"FAILED: {', '.join(wrong)}" if wrong else "every form of ours is right")
    return int(bool(wrong))


def main(arguments: list[str]) -> int | None:
    if arguments and arguments[0] in SUBJECTS:
        return importlib.import_module(f"bench.{arguments[0]}").main(arguments[1:])
    if "--quick" in arguments or {"-h", "--help"} & set(arguments):
        return quick(arguments)
    print(f"usage: python -m bench {{{','.join(SUBJECTS)}}} [options], or --quick; each has --help", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
