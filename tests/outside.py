"""A user's package outside of ours, on the path for one test."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from wcord_fast.cli.main import main

from .rank_pool import alone


def package_outside(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str, registered: dict) -> Iterator[Path]:
    """`my_package.mine` with this code below `folder`. At the end its registrations are undone."""
    package = folder / "my_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "mine.py").write_text(code)
    monkeypatch.syspath_prepend(folder)
    before = dict(registered)
    yield folder
    registered.clear()
    registered.update(before)
    for name in [name for name in sys.modules if name.startswith("my_package")]:
        del sys.modules[name]


def command(package: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """`wcord-fast distill` with these arguments and `package` on the path, in another process."""
    return alone(package, _distill, str(package), argv)


def _distill(package: str, argv: tuple[str, ...]) -> int:
    sys.path.insert(0, package)
    return main(["distill", *argv])
