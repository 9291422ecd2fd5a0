"""`wcord-fast info`: versions, devices and backends of this installation; it needs the library's dependencies only."""

from __future__ import annotations

from ..info import report
from .usage import COMMANDS, UsageError


def run(argv: list[str]) -> None:
    """Print the versions, devices and backends."""
    if {"-h", "--help"} & set(argv):
        print(f"usage: wcord-fast info\n\n{COMMANDS['info']}")
    elif argv:
        raise UsageError(f"unknown option {argv[0]!r}; see --help")
    else:
        print(report())
