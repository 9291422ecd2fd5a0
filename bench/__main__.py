"""`python -m bench SUBJECT`: measurements, appended to bench/results/ as JSON lines."""

from __future__ import annotations

import importlib
import sys

SUBJECTS = {"bank": "bench.bank"}


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in SUBJECTS:
        print(f"usage: python -m bench {{{','.join(SUBJECTS)}}} [options]", file=sys.stderr)
        return 2
    return importlib.import_module(SUBJECTS[sys.argv[1]]).main(sys.argv[2:])


if __name__ == "__main__":
    raise SystemExit(main())
