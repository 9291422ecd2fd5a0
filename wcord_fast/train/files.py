"""Files that are written completely or not at all, errors that name them, and the lock of a run's directory."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

if os.name == "posix":
    import fcntl

log = logging.getLogger(__name__)

LOCK = ".lock"
TEMPORARY = ".writing-"
_count = itertools.count()


class OutputError(OSError):
    """The output directory, or a file in it, cannot be written; the message names it and says why."""


class DirectoryInUse(OutputError):
    """Another run is at work in this directory."""


class _Writer:
    """A file that keeps its first write error, since torch.save reports a full disk as an error of its archive."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()

    def sync(self) -> None:
        """Write all buffered data of the file to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())


@contextmanager
def replacing(path: Path, option: str = "output_dir") -> Iterator[Any]:
    """A binary file that takes the place of `path` when the block ends; if it fails, `path` is left as it was.

    Raises:
        OutputError: `path` cannot be written, or is a device or a pipe; the message begins with `option`.
    """
    temporary = path.parent / f"{TEMPORARY}{os.getpid()}-{next(_count)}"
    writer = None
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # the rename would replace /dev/null
            raise OSError("not a regular file")
        with open(temporary, "wb") as file:
            writer = _Writer(file)
            yield writer
            writer.sync()
        os.replace(temporary, path)
        _sync_directory(path.parent)
    except BaseException as error:
        _remove(temporary)
        cause = writer.error if writer is not None and writer.error is not None else error
        if isinstance(cause, OSError) and not isinstance(cause, OutputError):
            raise cannot_write(path, cause, option) from None
        raise


def write_folder(path: Path, contents: Mapping[str, bytes], option: str = "output_dir") -> None:
    """Make a folder with files of these names and contents, completely or not at all.

    Raises:
        OutputError: the folder cannot be written, or exists and is not empty; the message begins with `option`.
    """
    temporary = path.parent / f"{TEMPORARY}{os.getpid()}-{next(_count)}"
    try:
        temporary.mkdir()
        for name, content in contents.items():
            with replacing(temporary / name, option) as file:
                file.write(content)
        os.rename(temporary, path)
        _sync_directory(path.parent)
    except BaseException as error:
        _remove(temporary)
        if isinstance(error, OSError) and not isinstance(error, OutputError):
            raise cannot_write(path, error, option) from None
        raise


def make_directory(path: Path, option: str = "output_dir") -> None:
    """Make the directory `path` and its parents; OutputError if that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error, option) from None


def cannot_write(path: Path, error: OSError, option: str = "output_dir") -> OutputError:
    """The OutputError for `path`, which comes from `option`."""
    return OutputError(f"{option}: cannot write {_short(path)}: {error.strerror or error}")


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Lock `directory` for this run, made if needed; the half-written files of killed runs are removed.

    The operating system releases the lock when the process ends, however it ends. Nothing is locked without POSIX
    locks (on other systems and some network file systems).

    Raises:
        DirectoryInUse: another run holds the lock; the message names its process.
        OutputError: the directory cannot be written.
    """
    make_directory(directory)
    try:
        file = open(directory / LOCK, "a+")  # noqa: SIM115  (closed below, and with it the lock)
    except OSError as error:
        raise cannot_write(directory / LOCK, error) from None
    with file:
        if os.name == "posix":
            _lock(directory, file)
        for leftover in directory.glob(f"{TEMPORARY}*"):
            _remove(leftover)
        yield


def _lock(directory: Path, file: IO[str]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        raise DirectoryInUse(
            f"output_dir: {directory} is in use by another run (pid {holder}); wait for it, or name another directory"
        ) from None
    except OSError as error:
        log.warning("%s: no lock here (%s); do not start a second run in it", directory, error.strerror)
        return
    try:
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
    except OSError as error:
        raise cannot_write(directory / LOCK, error) from None


def _remove(path: Path) -> None:
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s: cannot be removed: %s", _short(path), error.strerror)


def _short(path: Path) -> str:
    """A path for a message; the middle of a very long one is left out."""
    text = str(path)
    return text if len(text) <= 300 else f"{text[:140]}...{text[-140:]}"


def _sync_directory(directory: Path) -> None:
    """Make the renames in `directory` durable (POSIX; elsewhere the file system decides)."""
    if os.name != "posix":
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
