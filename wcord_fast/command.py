"""The command `wcord-fast` before it is known whether the driver's packages are here."""

from __future__ import annotations

import sys

from . import info
from .extras import MissingExtra
from .usage import answer


def main(argv: list[str] | None = None) -> int:
    """Run `wcord-fast`; its exit code, see `train.cli`. Without the extra `train`: help, version and `info` only."""
    arguments = sys.argv[1:] if argv is None else argv
    if answer(arguments):
        return 0
    try:
        from .train.cli import main as run
    except MissingExtra as error:
        if arguments == ["info"]:
            print(info())
            return 0
        print(f"wcord-fast {arguments[0]}: {error}", file=sys.stderr)
        return 2
    return run(arguments)
