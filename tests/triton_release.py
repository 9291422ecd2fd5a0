"""The installed release of Triton, for tests. Imports neither Triton nor torch."""

from __future__ import annotations

from importlib import metadata

import pytest


def release(package: str) -> tuple[int, int]:
    """(major, minor), or (0, 0) where it is not installed."""
    try:
        major, minor = metadata.version(package).split(".")[:2]
    except metadata.PackageNotFoundError:
        return 0, 0
    return int(major), int(minor)


TUNED = (3, 7)  # the release of Triton for which tiles were chosen and machine code is judged


def judge(problems: list[str]) -> None:
    """Fail for `problems` of the machine code (spills, occupancy) with the release that the tiles were chosen with.

    Another release makes other code: there they are reported as a skip. `python -m bench.gpu` measures what they cost.
    """
    if not problems:
        return
    if release("triton") == TUNED:
        pytest.fail("\n".join(problems))
    major, minor = release("triton")
    pytest.skip(f"Triton {major}.{minor}, reported and not judged: {'; '.join(problems)}")


def not_interpreted_reason() -> str | None:
    """Why kernels cannot be interpreted here, or None."""
    if release("triton") == (0, 0):
        return "triton is not installed"
    if release("triton") < (3, 7) and release("numpy") >= (2, 4):
        return "the interpreter of triton before 3.7 cannot loop up to a tensor under NumPy 2.4 and later"
    return None
