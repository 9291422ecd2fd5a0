"""What the installed release of Triton can do for these tests; imports neither Triton nor torch."""

from __future__ import annotations

from importlib import metadata


def release(package: str) -> tuple[int, int]:
    """(major, minor), or (0, 0) where it is not installed."""
    try:
        major, minor = metadata.version(package).split(".")[:2]
    except metadata.PackageNotFoundError:
        return 0, 0
    return int(major), int(minor)


def why_not_interpreted() -> str | None:
    """Why kernels cannot be interpreted here, or None."""
    if release("triton") == (0, 0):
        return "triton is not installed"
    if release("triton") < (3, 7) and release("numpy") >= (2, 4):
        return "the interpreter of triton before 3.7 cannot loop up to a tensor under NumPy 2.4 and later"
    return None
