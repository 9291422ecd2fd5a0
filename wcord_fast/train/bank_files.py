"""Checkpoints of sharded banks and queues: each rank writes its rows, any number of ranks reads them.

torch.distributed.checkpoint writes one directory per checkpoint, `banks-EPOCH`, beside checkpoint.pt. The directory is
complete before the checkpoint that names it is written; directories that no checkpoint names are removed afterwards. So
at every moment the last good checkpoint has its banks.
"""

from __future__ import annotations

import logging
import shutil
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import nn

from ..distributed.ranks import ranks
from ..nn.row_buffer import RowBuffer
from . import checkpoint, files
from .checkpoint import CheckpointError
from .ranks import from_main, is_main, to_main

log = logging.getLogger(__name__)

FOLDER = "banks-"
METADATA = ".metadata"
BLOCK = 1 << 24  # bytes read at a time
READERS = 16  # files that a process reads at once: reading and zlib.crc32 release Python's lock


def save(directory: Path, state: dict[str, Any], method: nn.Module) -> None:
    """`checkpoint.save` by rank 0, after all ranks have written their rows of `method`'s sharded banks, if it has any.

    Raises:
        OutputError: a file cannot be written; the last checkpoint and its banks are unchanged.
    """
    banks = _sharded(method)
    if banks:
        folder = f"{FOLDER}{state['epoch']:06d}"
        listed = _write(directory / folder, banks)
        unsharded = {name: value for name, value in state["method"].items() if name.removesuffix(".rows") not in banks}
        state = {**state, "method": unsharded, "banks": {"folder": folder, "files": listed}}
    if is_main():
        checkpoint.save(directory, state)
        if banks:
            _prune(directory)


def load_latest(
    directory: Path, spec: dict[str, Any], method: nn.Module, extend: bool = False
) -> dict[str, Any] | None:
    """`checkpoint.load_latest` on every rank, the banks verified and `method`'s rows filled from them."""
    state = from_main(lambda: checkpoint.load_latest(directory, spec, verify=verify, extend=extend))
    if state is None or not (banks := _sharded(method)):
        return state
    with checkpoint.usable(directory):
        _read(directory / state["banks"]["folder"], banks)
        state["method"] |= {f"{name}.rows": bank.rows for name, bank in banks.items()}
    return state


def verify(path: Path, state: dict[str, Any]) -> None:
    """CheckpointError unless the bank files that `state`, read from `path`, names have their sizes and checksums."""
    if "banks" not in state:
        return
    with checkpoint.usable(path):
        folder, listed = path.parent / state["banks"]["folder"], state["banks"]["files"]
        for name, (size, _) in listed.items():
            file = folder / name
            if not file.is_file():
                raise CheckpointError(f"{file}: no such file, but {path} needs it")
            if file.stat().st_size != size:
                raise CheckpointError(f"{file}: damaged, expected {size} bytes, got {file.stat().st_size}")
        with ThreadPoolExecutor(READERS) as pool:
            result = pool.map(_checksum, (folder / name for name in listed))
            for (name, (_, checksum)), computed in zip(listed.items(), result, strict=True):
                if computed != checksum:
                    raise CheckpointError(f"{folder / name}: damaged, its checksum is wrong")


def _write(folder: Path, banks: dict[str, RowBuffer]) -> dict[str, list[int]]:
    """Write the shards; return each file's size and checksum, by name (on rank 0). Each rank reads its own files."""
    # The folder of an interrupted run is removed before any rank makes it anew.
    from_main(lambda: shutil.rmtree(folder, ignore_errors=True))
    try:
        writer = dcp.FileSystemWriter(str(folder), single_file_per_rank=True, sync_files=True)
        with _no_group_warning():
            parts = {n: b.global_rows() for n, b in banks.items()}
            metadata = dcp.save(parts, storage_writer=writer, no_dist=ranks().world == 1)
    except (dcp.CheckpointException, OSError) as error:
        if is_main():
            shutil.rmtree(folder, ignore_errors=True)
        raise files.cannot_write(folder, _reason(error)) from None
    prefix, names = f"__{ranks().rank}_", {stored.relative_path for stored in metadata.storage_data.values()}
    own_names = {name for name in names if name.startswith(prefix)} | ({METADATA} if is_main() else set())
    listed = to_main({name: [(folder / name).stat().st_size, _checksum(folder / name)] for name in sorted(own_names)})
    for name in sorted(names) if is_main() else ():
        if not (folder / name).is_file():
            reason = f"no {name} here, which another process has written; all processes need one file system"
            raise files.cannot_write(folder, OSError(None, reason))
    return {name: result for part in listed for name, result in part.items()}


def _read(folder: Path, banks: dict[str, RowBuffer]) -> None:
    reader = dcp.FileSystemReader(str(folder))
    with _no_group_warning():
        dcp.load({n: b.global_rows() for n, b in banks.items()}, storage_reader=reader, no_dist=ranks().world == 1)


@contextmanager
def _no_group_warning() -> Iterator[None]:
    """Suppress the warning that there is no process group."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _sharded(method: nn.Module) -> dict[str, RowBuffer]:
    """The sharded banks and queues of `method`, by the names under which their rows are written."""
    return {n: m for n, m in method.named_modules() if isinstance(m, RowBuffer) and m.shard is not None}


def _prune(directory: Path) -> None:
    """Remove the banks that neither of the two checkpoints names."""
    named_folders = set()
    for name in (checkpoint.CURRENT, checkpoint.PREVIOUS):
        with suppress(CheckpointError):  # a missing or damaged file
            named_folders.add(checkpoint.read(directory / name).get("banks", {}).get("folder"))
    for folder in directory.glob(f"{FOLDER}*"):
        if folder.name not in named_folders:
            shutil.rmtree(folder, ignore_errors=True)


def _checksum(file: Path) -> int:
    value = 0
    with file.open("rb") as source:
        while block := source.read(BLOCK):
            value = zlib.crc32(block, value)
    return value


def _reason(error: BaseException) -> OSError:
    """The operating system's error that made torch.distributed.checkpoint fail, on any rank."""
    if isinstance(error, dcp.CheckpointException):
        for rank, (cause, _) in sorted(error.failures.items()):
            if isinstance(cause, OSError):
                return OSError(cause.errno, f"{cause.strerror or cause} (rank {rank})")
        return OSError(None, " ".join(str(next(iter(error.failures.values()))[0]).split()))
    assert isinstance(error, OSError)
    return error
