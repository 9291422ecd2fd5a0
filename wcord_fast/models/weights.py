"""Weights from files of other programs, anywhere in the file and under any prefix of keys.

One rule serves all: the weights are the tensors of one mapping under one prefix where every key of the network is
found, with its shape, and no other key. So `{"model": ...}`, `{"state_dict": ...}`, Lightning's "net.", "backbone.", a
distiller's "module.student." and DataParallel's "module." need no rules of their own.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..ops.warn import warn

# Parts that wrappers put anywhere into a key: DataParallel, torch.compile, FSDP, activation checkpointing.
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# Tensors that count batches or (thop's) operations. They may be absent, or present although the network has none.
COUNTERS = frozenset({"num_batches_tracked", "total_ops", "total_params"})
DEPTH = 4  # levels of nested mappings that are searched
SHOWN = 3  # keys that a message names


def find_state_dict(value: Any) -> dict[str, Tensor] | None:
    """The tensors of that mapping in `value`, a result of `torch.load`, that holds most of them; None without tensors.

    Keys are those of the file without the parts that wrappers (DataParallel, torch.compile, FSDP) put into them.
    """
    largest = max(_mappings(value), key=lambda mapping: len(mapping.tensors), default=None)
    if largest is None:
        return None
    return {plain: largest.tensors[key] for plain, key in _plain_keys(largest.tensors).items()}


def load_weights(network: nn.Module, value: Any) -> None:
    """Load the weights in `value` into `network`: every one of its keys must be found, with its shape.

    The keys may be in a mapping inside others, behind any prefix that all of them share, beside other things outside
    that prefix; wrappers' parts (see WRAPPERS) are left out of them. Counters (`num_batches_tracked`; thop's
    `total_ops` and `total_params`) may be absent or too many. Where the weights are found more than once with different
    values, as with "model" and "model_ema", the first in the file are taken, with a warning that names both.

    Args:
        network: the network of the same architecture.
        value: content of a file: the result of `train.checkpoint.read(path)`, which runs none of its code, of
            `torch.load(path, weights_only=True)` or of safetensors.
    Raises:
        TypeError: the name of a file instead of its content.
        ValueError: no state dict in it, or none whose keys and shapes fit; the message names the missing keys, the
            nearest prefix, and keys of the file.
    """
    if isinstance(value, (str, os.PathLike)):
        raise TypeError(
            f"value: expected the content of a file, got the name {os.fspath(value)!r}; "
            "wcord_fast.train.checkpoint.read(name) reads it"
        )
    mappings = list(_mappings(value))
    if not mappings:
        raise ValueError(f"holds no state dict at any level ({_contents(value)})")
    state = network.state_dict()  # the network's own tensors: those absent in the file keep their values
    network_keys = _plain_keys([key for key, item in state.items() if isinstance(item, Tensor)])
    expected = {plain: state[key] for plain, key in network_keys.items()}
    fits = [fit for result in mappings for fit in result.fits(expected)]
    complete = [fit for fit in fits if not fit.wrong]
    if not complete:
        raise ValueError(_no_fit_message(max(fits, key=lambda fit: (fit.present, -len(fit.wrong))), expected))
    different: list[_Fit] = []
    for fit in complete:
        if not any(fit.equals(other) for other in different):
            different.append(fit)
    first, *others = different
    if others:
        warn(
            f"the file holds weights for this network more than once; taken are those under {first.place!r}, "
            f"not those under {', '.join(repr(fit.place) for fit in others[:SHOWN])}"
        )
    network.load_state_dict(state | {network_keys[key]: item for key, item in first.state.items()})


@dataclass(frozen=True)
class _Fit:
    """The tensors of one mapping under one prefix, compared with a network's.

    place: the mapping's path in the file, and the prefix.
    state: the tensors that the network has, by its keys.
    present: number of the network's keys that were found.
    wrong: the mismatches; none if the weights fit.
    keys: keys of the mapping, for messages.
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

    def fits(self, expected: Mapping[str, Tensor]) -> Iterator[_Fit]:
        """The prefixes under which most of the network's keys are found: those that find all, or the best one."""
        counts: Counter[str] = Counter({"": 0})
        for key in self.tensors:
            parts = key.split(".")
            for i in range(len(parts)):
                if (rest := ".".join(parts[i:])) in expected and not _is_counter(rest):
                    counts[key[: len(key) - len(rest)]] += 1
        present = max(counts.values())
        best = [prefix for prefix, count in counts.items() if count == present]
        for prefix in best:
            others = tuple(other for other in best if other.startswith(prefix) and other != prefix)
            yield self._under(prefix, others, expected, present)

    def _under(self, prefix: str, others: tuple[str, ...], expected: Mapping[str, Tensor], present: int) -> _Fit:
        """The tensors under `prefix` except those under `others`, which are other networks."""
        inside = {
            key[len(prefix) :]: value
            for key, value in self.tensors.items()
            if key.startswith(prefix) and not key.startswith(others)
        }
        wrong = [f"no {key!r} in it" for key in expected if key not in inside and not _is_counter(key)]
        wrong += [f"{key!r} is not of this network" for key in inside if key not in expected and not _is_counter(key)]
        state = {key: inside[key] for key in expected if key in inside}
        wrong += [
            f"{key!r} is {list(value.shape)}, not {list(expected[key].shape)}"
            for key, value in state.items()
            if value.shape != expected[key].shape and not _is_counter(key)
        ]
        state = {key: value for key, value in state.items() if value.shape == expected[key].shape}
        return _Fit(self.path + prefix, state, present, wrong, list(self.tensors))


def _mappings(value: Any, path: str = "", depth: int = DEPTH) -> Iterator[_StateDict]:
    """`value` and the mappings inside it that hold tensors by name, in the file's order.

    Each comes a second time without the wrappers' parts of its keys, if it has any.
    """
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
    """{key without the wrappers' parts: key}; with unchanged keys if two would become one."""
    keys = list(keys)
    plain = {_plain(key): key for key in keys}
    return plain if len(plain) == len(keys) and "" not in plain else {key: key for key in keys}


def _plain(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in WRAPPERS)


def _is_counter(key: str) -> bool:
    return key.rpartition(".")[2] in COUNTERS


def _no_fit_message(nearest: _Fit, expected: Mapping[str, Tensor]) -> str:
    more = f" and {len(nearest.wrong) - SHOWN} more" if len(nearest.wrong) > SHOWN else ""
    under = f" under {nearest.place!r}" if nearest.place else ""
    keys = ", ".join(map(repr, nearest.keys[:SHOWN]))
    rest = f" and {len(nearest.keys) - SHOWN} more" if len(nearest.keys) > SHOWN else ""
    count = sum(not _is_counter(key) for key in expected)
    return (
        f"does not fit: {'; '.join(nearest.wrong[:SHOWN])}{more}. The file's tensors that fit best{under} have "
        f"{nearest.present} of the network's {count} keys; their keys are {keys}{rest}"
    )


def _contents(value: Any) -> str:
    if isinstance(value, Mapping) and value:
        return f"a {type(value).__name__} with {', '.join(repr(key)[:40] for key in list(value)[:5])}"
    return f"a {type(value).__name__}" if not isinstance(value, Mapping) else "nothing"
