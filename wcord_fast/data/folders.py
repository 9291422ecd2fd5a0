"""Folders of images: their classes, and the image files in them.

    root/train/<class>/... and root/test/<class>/...      two splits, by any of their usual names, in any case
    root/<class>/...  or only root/train/<class>/...      one split

Inside a class, images may lie in sub-folders; links are followed. Files and folders that file managers and systems make
(hidden ones, `@eaDir`, `__MACOSX`, `Thumbs.db`, ...) are neither images nor classes.
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

from ..ops import checks
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


def path_of(data_dir: str | os.PathLike[str]) -> Path:
    """`data_dir` as a path; ValueError if it can name nothing."""
    return Path(checks.path("data_dir", os.fspath(data_dir) if isinstance(data_dir, os.PathLike) else data_dir))


def existing_folder(root: str | os.PathLike[str]) -> Path:
    """The folder `root`; a FileNotFoundError says what is expected there."""
    top = path_of(root)
    if not top.is_dir():
        raise FileNotFoundError(f"data_dir: {top} is not a folder; expected {top}/train/<class>/<image> in it")
    return top


def is_helper(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or belongs to some program."""
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
    """Whether it is a folder or a link to one; a link to itself is not."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def display_name(name: str) -> str:
    """A folder's name as text: UTF-8, else Latin-1, with composed accents.

    Folders may come from a system with another encoding than UTF-8 or, such as macOS, with decomposed accents.
    """
    try:
        text = os.fsencode(name).decode()
    except UnicodeDecodeError:
        text = os.fsencode(name).decode("latin-1")
    return unicodedata.normalize("NFC", text)


def classes_in(folder: Path) -> dict[str, Path]:
    """The class folders in `folder` by class name, in alphabetical order of the folders.

    Raises:
        ValueError: there are none.
    """
    result = subfolders(folder)
    if not result:
        raise ValueError(f"{folder}: no class folders in it; expected {folder}/<class>/<image>")
    counts = Counter(display_name(path.name) for path in result)
    return {
        _escaped(path.name) if counts[display_name(path.name)] > 1 else display_name(path.name): path for path in result
    }


def _escaped(name: str) -> str:
    """A name whose bytes are escaped where they are not UTF-8, for folders that share a display name."""
    return os.fsencode(name).decode(errors="backslashreplace")


def class_names(train_dir: Path) -> tuple[str, ...]:
    """The classes: names of the folders in `train_dir`, at least two, in alphabetical order."""
    result = tuple(classes_in(train_dir))
    if len(result) < 2:
        raise ValueError(f"{train_dir}: expected at least two class folders, got only {result[0]!r}")
    return result


def list_images(folder: Path, classes: tuple[str, ...]) -> tuple[list[str], Tensor]:
    """Image files of the class folders in `folder`, and their labels int64 [N]: indices in `classes`.

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
            contents = f"only {_listed(others)}" if others else "it is empty"
            raise ValueError(f"{path}: no images in it ({contents})")
        ignored += others
        files += images
        labels += [classes.index(name)] * len(images)
    if strays := sorted(_images_in(folder)):
        log.warning("%s: %d images are in no class folder and not read: %s ...", folder, len(strays), strays[0])
    if ignored:
        log.warning("%s: %d files that are not images are ignored: %s", folder, ignored.total(), _listed(ignored))
    return files, torch.tensor(labels, dtype=torch.int64)


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{n:,} {suffix}" for suffix, n in counts.most_common())


def _files(folder: Path) -> Iterator[str]:
    """All files under `folder` except helpers, also through links, but not those back to an enclosing folder."""
    real = Path(os.path.realpath(folder))
    yield from _walk(str(folder), {_identity(p) for p in (real, *real.parents)})


def _walk(folder: str, enclosing: set[tuple[int, int]]) -> Iterator[str]:
    for entry in os.scandir(folder):
        if is_helper(entry.name):
            continue
        if not _is_folder(entry):
            special = not (entry.is_file(follow_symlinks=False) or os.path.isfile(entry.path))
            if special and os.path.exists(entry.path):  # a pipe or a device: reading it may never end
                log.warning("%s is no file: left out", entry.path)
                continue
            yield entry.path  # also a broken link: a missing image must be reported
        elif (identity := _identity(entry.path)) in enclosing:
            log.warning("%s leads back to a folder that it is in: not followed", entry.path)
        else:
            yield from _walk(entry.path, {*enclosing, identity})


def _identity(path: str | os.PathLike[str]) -> tuple[int, int]:
    stat = os.stat(path)
    return stat.st_dev, stat.st_ino
