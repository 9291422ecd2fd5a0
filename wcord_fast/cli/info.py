"""`wcord-fast info`: versions, devices and backends of this installation."""

from __future__ import annotations

from ..info import report
from .arguments import Arguments


def run(argv: list[str]) -> None:
    """What this installation is and can do."""
    Arguments("info", run.__doc__).parse_args(argv)
    print(report())
