"""Compiles .cu files for the CPU into one shared library."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"


def compiler() -> str | None:
    """The C++ compiler, or None."""
    return next(
        (path for name in (os.environ.get("CXX"), "c++", "g++") if name and (path := shutil.which(name))),
        None,
    )


def compile_library(sources: list[Path], folder: Path) -> ctypes.CDLL:
    """The .cu `sources` and the scheduler as a loaded library, built in `folder`."""
    # -rdynamic keeps the kernels' names for messages; FORTIFY would take the jumps between stacks for a bug.
    flags = ["-std=c++17", "-O1", "-fPIC", "-Wall", "-Wextra", "-Werror", "-U_FORTIFY_SOURCE", "-ffp-contract=off"]
    running, objects = [], []
    for source in [*sources, HERE / "scheduler.cpp", HERE / "records.cpp"]:
        objects.append(str(folder / f"{source.stem}.o"))
        command = [str(compiler()), *flags, f"-I{HERE}", "-x", "c++", "-c", str(source), "-o", objects[-1]]
        running.append(subprocess.Popen(command))
    failed = [process for process in running if process.wait() != 0]  # waits for all of them
    if failed:
        raise RuntimeError(f"{[s.name for s in sources]} do not compile for the CPU")
    target = folder / "kernels.so"
    subprocess.run([str(compiler()), "-shared", "-rdynamic", *objects, "-o", str(target), "-ldl"], check=True)
    return ctypes.CDLL(str(target))
