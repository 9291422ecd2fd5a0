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
    if not isinstance(value, Mapping):
        return None
    inner = next((value[key] for key in CONTAINERS if isinstance(value.get(key), Mapping)), value)
    if not inner or not all(isinstance(key, str) and isinstance(v, Tensor) for key, v in inner.items()):
        return None
    state = dict(inner)
    if any(key.startswith("module.student.") for key in state):  # a distiller: the rest is its teacher and its losses
        state = {key: v for key, v in state.items() if key.startswith("module.student.")}
    while True:
        prefix = next((p for p in PREFIXES if all(key.startswith(p) for key in state)), None)
        if prefix is None:
            return state
        state = {key[len(prefix) :]: v for key, v in state.items()}


def load_weights(network: nn.Module, value: Any) -> None:
    """Load a checkpoint of any of these formats into `network`, strictly.

    Args:
        network: the network of the same architecture.
        value: what `torch.load(path, weights_only=True)` gave.
    Raises:
        ValueError: no state dict in it, or one whose keys or shapes do not fit; the message names the first of them.
    """
    state = find_state_dict(value)
    if state is None:
        raise ValueError(f"holds no state dict, neither itself nor under {' or '.join(map(repr, CONTAINERS))}")
    own = network.state_dict()
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
