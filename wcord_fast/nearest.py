"""The known name that a misspelt or unknown word most likely means: the end of many messages. Imports no PyTorch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

OTHER_NAMES = {  # what papers and other libraries call an option -> its name here
    "lambda1": "lambda_gckt",
    "lambda2": "lambda_lckt",
    "learning_rate": "lr",
}
LEAST_BEGINNING = 3  # letters of an abbreviation


def nearest(word: object, known: Iterable[str]) -> str | None:
    """The name in `known` that `word` means by another name, abbreviates or resembles; None if there is none.

    Case counts neither way, nor does `-` for `_`. An abbreviation is taken before a name that looks alike: "temp" is
    "temperature", not "ot_eps".
    """
    names = {_plain(name): name for name in reversed(list(known))}  # of two that are equal, the first
    typed = _plain(str(word))
    stem = typed.rpartition(".")[2].lstrip("_")  # an option of the command begins with "--"
    meant = typed.removesuffix(stem) + OTHER_NAMES.get(stem, stem)
    if meant in names:
        return names[meant]
    if len(typed.lstrip("_")) >= LEAST_BEGINNING:
        longer = [name for name in names if name.startswith(typed)]
        if longer:
            return names[min(longer, key=len)]
    near = difflib.get_close_matches(typed, list(names), n=1)
    return names[near[0]] if near else None


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")
