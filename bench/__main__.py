"""`python -m bench SUBJECT [options]` runs bench/SUBJECT.py: measurements, appended to bench/results/ as JSON lines."""

from __future__ import annotations

import importlib
import sys

SUBJECTS = ("accuracy", "bank", "baselines", "ot", "plan", "report", "sharded", "step")


def main() -> int | None:
    if len(sys.argv) < 2 or sys.argv[1] not in SUBJECTS:
        print(f"usage: python -m bench {{{','.join(SUBJECTS)}}} [options]; each has --help", file=sys.stderr)
        return 2
    return importlib.import_module(f"bench.{sys.argv[1]}").main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
