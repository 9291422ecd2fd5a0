"""Any network as a teacher or student: its features are taken by forward hooks, by the names of its modules."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .base import global_pool


class Tapped(nn.Module):
    """A network that answers `net(images, return_features=True)` with (features, logits), as this package's do.

        net = Tapped(torchvision.models.resnet18(), features=("layer1", "layer2", "layer3", "layer4"))

    Args:
        network: any module with `network(images) -> logits [B, classes]`.
        features: names of modules (as in `network.named_modules()`) whose outputs are the features, in order.
        penultimate: name of the module whose *input* is the penultimate vector, appended as the last feature; by
            default the last `nn.Linear`. None appends the global average of the last feature instead.

    The state dict is the network's own, without a prefix. Outputs that are no tensors, and modules that run more than
    once or not at all in a forward, are refused. `torch.compile` breaks its graph at the hooks.

    Raises:
        ValueError: no module of that name; the message suggests the nearest, and lists the names at the top.
    """

    def __init__(
        self, network: nn.Module, features: str | Sequence[str] = (), penultimate: str | None = "auto"
    ) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise TypeError(f"network: expected a torch.nn.Module, got {type(network).__name__}")
        self.network = network
        self.taps = (features,) if isinstance(features, str) else tuple(features)
        modules = dict(network.named_modules())
        if penultimate == "auto":
            linears = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
            if not linears:
                raise ValueError(
                    "penultimate: the network has no nn.Linear; name a module whose input to take, or None"
                )
            penultimate = linears[-1]
        self.penultimate = penultimate
        if not self.taps and penultimate is None:
            raise ValueError("features: expected at least one name when penultimate is None")
        for argument, name in [("features", n) for n in self.taps] + [("penultimate", n) for n in [penultimate] if n]:
            if name not in modules or name == "":
                raise ValueError(f"{argument}: {_no_such_module(name, modules)}")
        self._found: dict[str, Tensor] = {}
        # Bound methods and not lambdas: a deep copy's hooks are then the copy's own, and a Tapped can be pickled.
        for name in self.taps:
            modules[name].register_forward_hook(partial(self._keep_output, name))
        if penultimate:
            modules[penultimate].register_forward_pre_hook(self._keep_input)
        self.register_state_dict_post_hook(_without_prefix)
        self.register_load_state_dict_pre_hook(_with_prefix)

    @property
    def head(self) -> nn.Module | None:
        """The module behind the penultimate vector, or None."""
        return self.network.get_submodule(self.penultimate) if self.penultimate else None

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor | tuple[list[Tensor], Tensor]:
        """Logits, or (features, logits); the last feature is a vector [B, D] per image."""
        self._found.clear()
        try:
            logits = self.network(x)
            missing = [name for name in (*self.taps, *([""] if self.penultimate else [])) if name not in self._found]
            if missing:
                raise RuntimeError(f"features: {missing[0] or self.penultimate!r} did not run in this forward")
            found = [self._found[name] for name in self.taps]
            last = self._found[""].flatten(1) if self.penultimate else _vector(found[-1])
        finally:
            self._found.clear()
        return ([*found, last], logits) if return_features else logits

    def _keep_output(self, name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self._keep(name, output)

    def _keep_input(self, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._keep("", inputs[0])

    def _keep(self, name: str, value: Any) -> None:
        shown = name or self.penultimate
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"features: expected {shown!r} to give one tensor, got {type(value).__name__}")
        if name in self._found:
            raise RuntimeError(f"features: {shown!r} runs more than once in a forward")
        self._found[name] = value


def _vector(feature: Tensor) -> Tensor:
    return global_pool(feature) if feature.dim() == 4 else feature.flatten(1)


def _no_such_module(name: str, modules: dict[str, nn.Module]) -> str:
    near = difflib.get_close_matches(name, [n for n in modules if n], n=1)
    top = ", ".join(n for n in modules if n and "." not in n)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"the network has no module {name!r}{hint}; at its top it has {top}"


def _without_prefix(_module, state_dict, prefix, _metadata) -> None:
    for key in [k for k in state_dict if k.startswith(f"{prefix}network.")]:
        state_dict[prefix + key[len(prefix) + len("network.") :]] = state_dict.pop(key)


def _with_prefix(_module, state_dict, prefix, *_) -> None:
    for key in [k for k in state_dict if k.startswith(prefix)]:
        state_dict[f"{prefix}network.{key[len(prefix) :]}"] = state_dict.pop(key)
