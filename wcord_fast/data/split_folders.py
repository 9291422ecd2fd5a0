"""The folders of an image set that hold its training and its test images.

Usual names are recognised in any case. Folders that look like splits under other names are an error that names them:
taken for classes, `my_train/` and `my_test/` would train without a warning.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from .folders import holds_images, subfolders

log = logging.getLogger(__name__)

WORDS = {
    "train": ("train", "training", "trn"),
    "test": ("test", "testing", "tst"),
    "val": ("val", "valid", "validate", "validation", "dev", "development", "eval", "evaluation"),
}
KIND = {word: kind for kind, words in WORDS.items() for word in words}
FILLER = ("set", "data", "dataset", "split", "images", "imgs", "img")
DEEPEST = 8  # levels of folders with nothing but one folder in them that are entered
NAMED = 8  # folders that a message names


def find_splits(top: Path) -> tuple[Path, Path | None]:
    """The folders of the training and of the test classes; the second None if all images are in one.

    "test" is taken before "val" where both have class folders. A folder that holds only one folder is entered.

    Raises:
        ValueError: folders look like splits, but which is which is not clear.
    """
    top = _entered(top)
    inside = subfolders(top)
    flat = [folder for folder in inside if kind_of(folder.name) and not _is_split(folder, inside)]
    kinds: dict[str | None, list[Path]] = {None: []}
    for folder in inside:
        if folder not in flat:
            kinds.setdefault(kind_of(folder.name), []).append(folder)
    held_out = next((kinds[kind] for kind in ("test", "val") if any(map(subfolders, kinds.get(kind, [])))), None)
    held_out = held_out or kinds.get("test") or kinds.get("val")
    if "train" not in kinds:
        if held_out is not None:
            contents = f"seen: {_names(inside)}" + (f"; no class folders are in {_names(flat)}" if flat else "")
            raise ValueError(f"data_dir: {held_out[0]} is there but {top / 'train'} is not; {contents}")
        _require_classes(top, inside)
        return top, None
    train = _the_only(top, kinds["train"])
    if flat:
        log.warning("%s: not read, for want of class folders: %s", top, _names(flat))
    if held_out is None:
        _require_no_other(top, train, kinds[None])
        return _inner(train), None
    test = _the_only(top, held_out)
    unread = [f for kind in ("test", "val", None) for f in kinds.get(kind, []) if f != test]
    if unread:
        log.info("%s: the test images are those of %s/; not read: %s", top, test.name, _names(unread))
    return _inner(train), _inner(test)


def _entered(top: Path) -> Path:
    """`top`, or the only folder in it, down to one that holds more."""
    for _ in range(DEEPEST):
        inside = subfolders(top)
        if len(inside) != 1 or kind_of(inside[0].name) or holds_images(inside[0]) or not subfolders(inside[0]):
            break
        top = inside[0]
        log.info("reading %s", top)
    return top


def _the_only(top: Path, folders: list[Path]) -> Path:
    if len(folders) > 1:
        raise ValueError(f"data_dir: {top} has {_names(folders)}: which of them is meant? Keep one")
    return folders[0]


def kind_of(name: str) -> str | None:
    """ "train", "test" or "val" for a usual name of that split, in any case: "Training", "test_set", "validation"."""
    word = re.sub(r"[\W_]+", "", name.casefold())
    return KIND.get(word) or next((KIND.get(word.removesuffix(end)) for end in FILLER if word.endswith(end)), None)


def _kind_prefix(name: str) -> str | None:
    """The kind of split that a word of the name denotes: "seg_train", "val2017"."""
    words = [word for part in re.split(r"[^a-zA-Z]+", name) for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", part)]
    return next((kind for word in words if (kind := kind_of(word))), None)


def _is_split(folder: Path, beside: list[Path]) -> bool:
    """Whether a folder with a split's name is a split.

    Images in it mean that it is a class ("train", a vehicle), unless it has class folders too, and another split or no
    possible class is beside it.
    """
    if not holds_images(folder):
        return True
    others = [other for other in beside if other != folder]
    another = any(kind_of(other.name) and subfolders(other) for other in others)
    return bool(subfolders(folder)) and (another or not any(map(holds_images, others)))


def _inner(split: Path) -> Path:
    """`split`, or the folder that is alone in it and has folders of its own: training_set/training_set/<class>."""
    inside = subfolders(split)
    if len(inside) == 1 and not holds_images(inside[0]) and kind_of(inside[0].name) and subfolders(inside[0]):
        return inside[0]
    return split


def _require_classes(top: Path, inside: list[Path]) -> None:
    """ValueError if the folders in `top` do not look like classes."""
    flat = [folder for folder in inside if holds_images(folder)]
    named = [folder for folder in flat if kind_of(folder.name)]
    if len({kind_of(folder.name) for folder in named}) > 1:
        raise ValueError(
            f"data_dir: {_names(named)} in {top} hold images, but no class folders; expected {named[0]}/<class>/<image>"
        )
    deep = {folder: [f.name for f in subfolders(folder)] for folder in inside if folder not in flat}
    for folder, names in deep.items():
        if len({kind_of(name) for name in names} - {None}) > 1:
            raise ValueError(f"data_dir: {folder} has {_listed(names)}, which are splits; expected them in data_dir")
    similar = [folder for folder in deep if _kind_prefix(folder.name)]
    if len({_kind_prefix(folder.name) for folder in similar}) > 1 or (similar and len(similar) == len(inside) > 1):
        raise ValueError(f"data_dir: {_names(similar)} in {top} look like splits; {_known_names()}")
    names_in = [set(names) for names in deep.values()]
    if len(inside) == len(names_in) > 1 and len(names_in[0]) > 1 and all(names == names_in[0] for names in names_in):
        raise ValueError(
            f"data_dir: {_names(inside)} in {top} all have the folders {_listed(sorted(names_in[0]))}, as splits have; "
            f"{_known_names()}"
        )


def _require_no_other(top: Path, train: Path, others: list[Path]) -> None:
    """ValueError if a folder beside `train`, where there is no known test folder, has classes of the same names."""
    classes = {f.name for f in subfolders(train)}
    for other in others:
        if classes & {f.name for f in subfolders(other)}:
            raise ValueError(
                f"data_dir: {top} has {train.name}/ and no known test folder, but {other.name}/ has some of its "
                f"classes; {_known_names()}"
            )
    if others:
        log.warning("%s: only %s/ is read, not %s", top, train.name, _names(others))


def _known_names() -> str:
    names = "; ".join(f"{' or '.join(words)}" for words in WORDS.values())
    return f"the names of splits that are known, in any case: {names}"


def _names(folders: list[Path]) -> str:
    return _listed([f.name for f in folders])


def _listed(names: list[str]) -> str:
    return ", ".join(f"{name}/" for name in names[:NAMED]) + (" ..." if len(names) > NAMED else "")
