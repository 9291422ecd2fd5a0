"""`python -m bench NAME [options]` runs bench/NAME.py: one table per op, rows appended under bench/results/."""

from __future__ import annotations

import importlib
import importlib.util
import sys


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if not name.isidentifier() or importlib.util.find_spec(f"bench.{name}") is None:
        raise SystemExit("usage: python -m bench {ot, ...} [options]; each has --help")
    importlib.import_module(f"bench.{name}").main(sys.argv[2:])


if __name__ == "__main__":
    main()
