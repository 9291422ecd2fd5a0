"""Folders of images: which are splits, which are classes, and which files in them are images.

    root/train/<class>/... and root/test/<class>/...      two splits, by any of their usual names, in any case
    root/<class>/...  or only root/train/<class>/...      one

Inside a class, images may lie in sub-folders; links are followed. What file managers and systems leave behind (hidden
files, `@eaDir`, `__MACOSX`, `Thumbs.db`, ...) is neither an image nor a class.
"""

from __future__ import annotations

import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from .decode import suffixes

log = logging.getLogger(__name__)

HELPERS = {
    "$recycle.bin",
    "#recycle",
    "#snapshot",
    "@eadir",
    "@recently-snapshot",
    "@recycle",
    "@tmp",
    "__macosx",
    "__pycache__",
    "desktop.ini",
    "ehthumbs.db",
    "icon\r",
    "lost+found",
    "system volume information",
    "thumbs.db",
}


def existing(root: str | os.PathLike[str]) -> Path:
    """The folder `root`, or the FileNotFoundError that says what should be there."""
    top = Path(root).expanduser()
    if not top.is_dir():
        raise FileNotFoundError(f"data_dir: {top} is not a folder; expected {top}/train/<class>/<image> in it")
    return top


def is_helper(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or some program's own."""
    return name.startswith(".") or name.casefold() in HELPERS


def subfolders(folder: Path) -> list[Path]:
    """The folders in `folder`, links among them, in the order of their names."""
    return sorted(Path(e.path) for e in os.scandir(folder) if _is_folder(e) and not is_helper(e.name))


def holds_images(folder: Path) -> bool:
    """Whether an image lies in `folder` itself."""
    return any(True for _ in _images_in(folder))


def _images_in(folder: Path) -> Iterator[str]:
    for entry in os.scandir(folder):
        if _suffix(entry.name) in suffixes() and not is_helper(entry.name) and not _is_folder(entry):
            yield entry.name


def _suffix(file: str) -> str:
    return os.path.splitext(file)[1].lower()


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Also for a link; one that leads to itself is none."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def shown(name: str) -> str:
    """A folder's name as text: UTF-8, else Latin-1, with accents in one form.

    Whoever made the folder may have used another encoding than UTF-8, or, as macOS does, accents of their own.
    """
    try:
        text = os.fsencode(name).decode()
    except UnicodeDecodeError:
        text = os.fsencode(name).decode("latin-1")
    return unicodedata.normalize("NFC", text)


def classes_in(folder: Path) -> dict[str, Path]:
    """The class folders in `folder` by the classes' names, in alphabetical order of the folders.

    Raises:
        ValueError: there are none.
    """
    result = subfolders(folder)
    if not result:
        raise ValueError(f"{folder}: no class folders in it; expected {folder}/<class>/<image>")
    times = Counter(shown(path.name) for path in result)
    return {_distinct(path.name) if times[shown(path.name)] > 1 else shown(path.name): path for path in result}


def _distinct(name: str) -> str:
    """Two folders are shown by one name: tell them apart by their bytes."""
    return os.fsencode(name).decode(errors="backslashreplace")


def class_names(train_dir: Path) -> tuple[str, ...]:
    """The classes: names of the folders in `train_dir`, at least two, in alphabetical order."""
    result = tuple(classes_in(train_dir))
    if len(result) < 2:
        raise ValueError(f"{train_dir}: expected at least two class folders, got only {result[0]!r}")
    return result


def list_images(folder: Path, classes: tuple[str, ...]) -> tuple[list[str], Tensor]:
    """Image files of the class folders in `folder`, and their labels int64 [N]: places in `classes`.

    Raises:
        ValueError: a folder whose name is not in `classes`, or without an image.
    """
    present = classes_in(folder)
    if unknown := sorted(set(present) - set(classes)):
        raise ValueError(f"{present[unknown[0]]}: class {unknown[0]!r} is not among the training classes")
    files: list[str] = []
    labels: list[int] = []
    ignored: Counter[str] = Counter()
    for name, path in present.items():
        inside = sorted(_files(path), key=lambda file: file.split(os.sep))
        images = [file for file in inside if _suffix(file) in suffixes()]
        others = Counter(_suffix(file) or "without suffix" for file in inside if _suffix(file) not in suffixes())
        if not images:
            seen = f"only {_list(others)}" if others else "it is empty"
            raise ValueError(f"{path}: no images in it ({seen})")
        ignored += others
        files += images
        labels += [classes.index(name)] * len(images)
    if strays := sorted(_images_in(folder)):
        log.warning("%s: %d images are in no class folder and not read: %s ...", folder, len(strays), strays[0])
    if ignored:
        log.warning("%s: %d files that are not images are ignored: %s", folder, ignored.total(), _list(ignored))
    return files, torch.tensor(labels, dtype=torch.int64)


def _list(counts: Counter[str]) -> str:
    return ", ".join(f"{n:,} {suffix}" for suffix, n in counts.most_common())


def _files(folder: Path) -> Iterator[str]:
    """All files under `folder` but helpers', through links too, but for one that leads back to where it came from."""
    real = Path(os.path.realpath(folder))
    yield from _walk(str(folder), {_identity(p) for p in (real, *real.parents)})


def _walk(folder: str, above: set[tuple[int, int]]) -> Iterator[str]:
    for entry in os.scandir(folder):
        if is_helper(entry.name):
            continue
        if not _is_folder(entry):
            yield entry.path  # also a link that leads nowhere: an image that is missing has to be told
        elif (inner := _identity(entry.path)) in above:
            log.warning("%s leads back to a folder that it is in: not followed", entry.path)
        else:
            yield from _walk(entry.path, {*above, inner})


def _identity(path: str | os.PathLike[str]) -> tuple[int, int]:
    stat = os.stat(path)
    return stat.st_dev, stat.st_ino
