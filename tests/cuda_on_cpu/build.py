"""Compiles .cu files for the CPU into one shared library. Objects stay in build/ for other tests, workers and runs."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
OBJECTS = CSRC.parent / "build" / "cuda_on_cpu"
# -rdynamic keeps the kernels' names for messages; FORTIFY would take the jumps between stacks for a bug.
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-Wall", "-Wextra", "-Werror", "-U_FORTIFY_SOURCE", "-ffp-contract=off")


def compiler() -> str | None:
    """The C++ compiler, or None."""
    return next(
        (path for name in (os.environ.get("CXX"), "c++", "g++") if name and (path := shutil.which(name))),
        None,
    )


@functools.cache
def key() -> str:
    """Of the compiler and of every file that a source may include: equal keys, equal objects."""
    version = subprocess.run([str(compiler()), "--version"], capture_output=True, check=True).stdout
    digest = hashlib.sha256(repr((compiler(), version, FLAGS)).encode())
    for path in sorted(path for folder in (CSRC, HERE) for path in folder.rglob("*") if path.is_file()):
        if path.suffix in (".cpp", ".cu", ".h", ".inl"):
            digest.update(f"{path} ".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def compiled(source: Path) -> Path:
    """The object of `source`, made by the first who asks for it; others wait."""
    OBJECTS.mkdir(parents=True, exist_ok=True)
    result = OBJECTS / f"{source.stem}-{key()}.o"
    with (OBJECTS / f"{source.stem}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not result.exists():
            for old in OBJECTS.glob(f"{source.stem}-*"):
                old.unlink()
            unfinished = result.with_suffix(".tmp")
            command = [str(compiler()), *FLAGS, f"-I{HERE}", "-x", "c++", "-c", str(source), "-o", str(unfinished)]
            if subprocess.run(command).returncode != 0:
                raise RuntimeError(f"{source.name} does not compile for the CPU")
            unfinished.rename(result)
    return result


def compile_library(sources: list[Path], folder: Path) -> ctypes.CDLL:
    """The .cu `sources` and the scheduler as a loaded library, built in `folder`."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, [*sources, HERE / "scheduler.cpp", HERE / "records.cpp"]))
    target = folder / "kernels.so"
    command = [str(compiler()), "-shared", "-rdynamic", *map(str, objects), "-o", str(target), "-ldl"]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(target))
