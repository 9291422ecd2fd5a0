"""Weights from checkpoints of other programs: RepDistiller's, mdistiller's, DataParallel's, plain state dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

CONTAINERS = ("model", "state_dict", "net")  # where a checkpoint keeps its state dict
PREFIXES = ("module.", "student.", "model.", "network.")  # of wrappers, in any order, if every key has it


def find_state_dict(value: Any) -> dict[str, Tensor] | None:
    """The state dict in what `torch.load` gave, without wrappers' prefixes: itself or in one of CONTAINERS; else None.

    RepDistiller saves {"epoch", "model", ...}; mdistiller {"model"} or, with its distiller round it, keys that begin
    with "module.student.".
    """
    forms = _forms(value)
    return forms[-1] if forms else None


def _forms(value: Any) -> list[dict[str, Tensor]]:
    """The state dict in `value` as it is, and after each prefix that can be taken off; [] if there is none."""
    if not isinstance(value, Mapping):
        return []
    inner = next((value[key] for key in CONTAINERS if isinstance(value.get(key), Mapping)), value)
    if not inner or not all(isinstance(key, str) and isinstance(v, Tensor) for key, v in inner.items()):
        return []
    forms = [dict(inner)]
    students = {key: v for key, v in inner.items() if key.startswith("module.student.")}
    if students:  # a distiller: the rest is its teacher and its losses
        forms.append(students)
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in forms[-1])), None):
        forms.append({key[len(prefix) :]: v for key, v in forms[-1].items()})
    return forms


def load_weights(network: nn.Module, value: Any) -> None:
    """Load a checkpoint of any of these formats into `network`, strictly.

    A prefix that the network's own keys have, as those of `self.model = ...` do, is not taken for a wrapper's.

    Args:
        network: the network of the same architecture.
        value: what `torch.load(path, weights_only=True)` gave.
    Raises:
        ValueError: no state dict in it, or one whose keys or shapes do not fit; the message names the first of them.
    """
    forms, own = _forms(value), network.state_dict()
    if not forms:
        raise ValueError(f"holds no state dict, neither itself nor under {' or '.join(map(repr, CONTAINERS))}")
    state = max(reversed(forms), key=lambda form: len(form.keys() & own.keys()))  # of equals the shortest keys
    wrong = [f"no {key!r} in it" for key in own if key not in state]
    wrong += [f"{key!r} is not of this network" for key in state if key not in own]
    wrong += [
        f"{key!r} is {list(state[key].shape)}, not {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if wrong:  # found before anything is written
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"does not fit: {'; '.join(wrong[:3])}{more}")
    network.load_state_dict(state)
