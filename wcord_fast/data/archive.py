"""Reads some members of a tar archive, and trusts nothing in it.

Nothing is written to disk, so a path, a link or a device in the archive has nowhere to lead to. A gzip stream of a few
bytes can unpack to terabytes: reading ends at `LIMIT`.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

LIMIT = 2**29  # unpacked bytes of a whole archive; CIFAR's have 187 MB
MAGIC = b"\x1f\x8b"  # a gzip file's first bytes


class _Limited(io.RawIOBase):
    """A stream that ends in ValueError after `LIMIT` bytes."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile) -> None:
        self._stream, self._left = stream, LIMIT

    def read(self, size: int = -1) -> bytes:
        chunk = self._stream.read(min(size if size >= 0 else LIMIT, self._left + 1))
        self._left -= len(chunk)
        if self._left < 0:
            raise ValueError(f"it unpacks to more than {LIMIT // 2**20} MB")
        return chunk


def read(path: Path, names: Sequence[str]) -> dict[str, IO[bytes]]:
    """The members `names` of the archive at `path`, gzipped or not, in the order of `names`.

    Raises:
        ValueError: the archive is damaged or of another kind, or does not hold each of `names` once, as a plain file.
    """
    result: dict[str, IO[bytes]] = {}
    with path.open("rb") as file:
        zipped = file.read(2) == MAGIC
        file.seek(0)
        try:
            stream = _Limited(gzip.GzipFile(fileobj=file) if zipped else file)
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                for member in tar:
                    name = member.name.removeprefix("./")
                    if name not in names:
                        continue
                    if not member.isreg() or member.issparse() or name in result:
                        raise ValueError(f"{name} is there twice or is no plain file")
                    content = tar.extractfile(member)
                    assert content is not None  # it is a plain file
                    result[name] = io.BytesIO(content.read())
            while stream.read(2**20):  # the checksum of gzip is at the end
                pass
        except Exception as error:  # a damaged archive can raise nearly anything
            raise ValueError(f"{path}: not a readable archive: {error or type(error).__name__}") from error
    if missing := [name for name in names if name not in result]:
        raise ValueError(f"{path}: no {missing[0]} in it")
    return {name: result[name] for name in names}
