"""Weights from files of other programs, wherever in the file they are and whatever stands before their names.

One rule serves them all: the state dict is the mapping in the file, and the prefix of keys in it, under which every key
of the network is found, with its shape, and no other. `{"model": ...}`, `{"state_dict": ...}`, Lightning's "net.",
"backbone.", a distiller's "module.student." and DataParallel's "module." need no names of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..ops.warn import warn

# Parts that wrappers put anywhere into a key: DataParallel, torch.compile, FSDP, activation checkpointing.
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# Tensors that count batches or (thop's) operations: they may be absent, or be there without belonging to the network.
COUNTERS = frozenset({"num_batches_tracked", "total_ops", "total_params"})
DEPTH = 4  # mappings in mappings that are looked through
SHOWN = 3  # keys in a message


def find_state_dict(value: Any) -> dict[str, Tensor] | None:
    """The tensors of the mapping in `value`, what `torch.load` gave, that holds most of them; None if none holds any.

    Keys are as in the file, less the parts that wrappers (DataParallel, torch.compile, FSDP) put into them.
    """
    largest = max(_mappings(value), key=lambda mapping: len(mapping.tensors), default=None)
    if largest is None:
        return None
    return {plain: largest.tensors[key] for plain, key in _plain_keys(largest.tensors).items()}


def load_weights(network: nn.Module, value: Any) -> None:
    """Load the weights in `value` into `network`: every one of its keys must be found, with its shape.

    The keys may be in a mapping inside others, behind any prefix that all of them share, beside other things outside
    that prefix; wrappers' parts (see WRAPPERS) are left out of them. Counters (`num_batches_tracked`; thop's
    `total_ops` and `total_params`) may be absent or too many. Where the weights are found more than once with other
    values, as with "model" and "model_ema", the first in the file are taken, with a warning that names both.

    Args:
        network: the network of the same architecture.
        value: what `torch.load(path, weights_only=True)`, or safetensors, gave.
    Raises:
        ValueError: no state dict in it, or none whose keys and shapes fit; the message names what is missing, the
            nearest prefix, and keys that are in the file.
    """
    mappings = list(_mappings(value))
    if not mappings:
        raise ValueError(f"holds no state dict, neither itself nor in what it holds ({_contents(value)})")
    state = network.state_dict()  # its tensors are the network's own: what is absent in the file keeps its value
    own_keys = _plain_keys([key for key, item in state.items() if isinstance(item, Tensor)])
    own = {plain: state[key] for plain, key in own_keys.items()}
    fits = [fit for result in mappings for fit in result.fits(own)]
    whole = [fit for fit in fits if not fit.wrong]
    if not whole:
        raise ValueError(_no_fit(max(fits, key=lambda fit: (fit.present, -len(fit.wrong))), own))
    different: list[_Fit] = []
    for fit in whole:
        if not any(fit.equals(other) for other in different):
            different.append(fit)
    first, *others = different
    if others:
        warn(
            f"the file holds weights for this network more than once; taken are those under {first.place!r}, "
            f"not those under {', '.join(repr(fit.place) for fit in others[:SHOWN])}"
        )
    network.load_state_dict(state | {own_keys[key]: item for key, item in first.state.items()})


@dataclass(frozen=True)
class _Fit:
    """The tensors of one mapping under one prefix, held against a network's.

    place: the mapping's path in the file, and the prefix.
    state: the tensors that the network has, by its keys.
    present: how many of its keys were found.
    wrong: what does not fit; the weights are the network's if that is empty.
    keys: of the file, to be shown.
    """

    place: str
    state: dict[str, Tensor]
    present: int
    wrong: list[str]
    keys: list[str]

    def equals(self, other: _Fit) -> bool:
        return self.state.keys() == other.state.keys() and all(
            a is other.state[key] or (a.dtype == other.state[key].dtype and a.equal(other.state[key]))
            for key, a in self.state.items()
        )


@dataclass(frozen=True)
class _StateDict:
    """The tensors of one mapping in the file; `path` ends with a dot unless it is empty."""

    path: str
    tensors: dict[str, Tensor]

    def fits(self, own: Mapping[str, Tensor]) -> Iterator[_Fit]:
        """The prefixes under which most of the network's keys are found: those that find all, or the best one."""
        counts: Counter[str] = Counter({"": 0})
        for key in self.tensors:
            parts = key.split(".")
            for i in range(len(parts)):
                if (rest := ".".join(parts[i:])) in own and not _counts(rest):
                    counts[key[: len(key) - len(rest)]] += 1
        most = max(counts.values())
        best = [prefix for prefix, count in counts.items() if count == most]
        for prefix in best:
            others = tuple(other for other in best if other.startswith(prefix) and other != prefix)
            yield self._under(prefix, others, own, most)

    def _under(self, prefix: str, others: tuple[str, ...], own: Mapping[str, Tensor], present: int) -> _Fit:
        """The tensors under `prefix`, but for those under `others`, which are networks of their own."""
        inside = {
            key[len(prefix) :]: value
            for key, value in self.tensors.items()
            if key.startswith(prefix) and not key.startswith(others)
        }
        wrong = [f"no {key!r} in it" for key in own if key not in inside and not _counts(key)]
        wrong += [f"{key!r} is not of this network" for key in inside if key not in own and not _counts(key)]
        state = {key: inside[key] for key in own if key in inside}
        wrong += [
            f"{key!r} is {list(value.shape)}, not {list(own[key].shape)}"
            for key, value in state.items()
            if value.shape != own[key].shape and not _counts(key)
        ]
        state = {key: value for key, value in state.items() if value.shape == own[key].shape}
        return _Fit(self.path + prefix, state, present, wrong, list(self.tensors))


def _mappings(value: Any, path: str = "", depth: int = DEPTH) -> Iterator[_StateDict]:
    """`value` and the mappings inside it that hold tensors by name, in the file's order; each also without the
    wrappers' parts of its keys."""
    if not isinstance(value, Mapping):
        return
    tensors = {key: item for key, item in value.items() if isinstance(key, str) and isinstance(item, Tensor)}
    if tensors:
        yield _StateDict(path, tensors)
        if (plain := _plain_keys(tensors)).keys() != tensors.keys():
            yield _StateDict(path, {name: tensors[key] for name, key in plain.items()})
    if depth:
        for key, item in value.items():
            yield from _mappings(item, f"{path}{key}.", depth - 1)


def _plain_keys(keys: Iterable[str]) -> dict[str, str]:
    """Each key without the wrappers' parts -> the key; as they are if two would become one."""
    keys = list(keys)
    plain = {_plain(key): key for key in keys}
    return plain if len(plain) == len(keys) and "" not in plain else {key: key for key in keys}


def _plain(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in WRAPPERS)


def _counts(key: str) -> bool:
    return key.rpartition(".")[2] in COUNTERS


def _no_fit(nearest: _Fit, own: Mapping[str, Tensor]) -> str:
    more = f" and {len(nearest.wrong) - SHOWN} more" if len(nearest.wrong) > SHOWN else ""
    under = f" under {nearest.place!r}" if nearest.place else ""
    keys = ", ".join(map(repr, nearest.keys[:SHOWN]))
    rest = f" and {len(nearest.keys) - SHOWN} more" if len(nearest.keys) > SHOWN else ""
    return (
        f"does not fit: {'; '.join(nearest.wrong[:SHOWN])}{more}. The file's tensors that fit best{under} have "
        f"{nearest.present} of the network's {sum(not _counts(key) for key in own)} keys; their keys are {keys}{rest}"
    )


def _contents(value: Any) -> str:
    if isinstance(value, Mapping) and value:
        return f"a {type(value).__name__} with {', '.join(repr(key)[:40] for key in list(value)[:5])}"
    return f"a {type(value).__name__}" if not isinstance(value, Mapping) else "nothing"
