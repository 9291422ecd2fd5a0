"""Any network as a teacher or student: forward hooks capture the outputs of its named modules as features."""

from __future__ import annotations

import difflib
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..ops import checks
from .base import global_pool
from .forms import Tap, parse_tap, tap_names
from .hooks import After, Before, call
from .logits import logits_of

LAST = ""  # the tap of the penultimate vector


class _Captured(NamedTuple):
    """The output of a tapped module in a forward, its version then, and a copy of it if one was made."""

    tensor: Tensor
    version: int
    copy: Tensor | None
    lost: bool  # the module trains and the forward has gradients, but the module ran without them


class Tapped(nn.Module):
    """A network whose `net(images, return_features=True)` returns (features, logits), like the package's networks.

        net = Tapped(torchvision.models.resnet18(), features=("layer1", "layer2", "layer3", "layer4"))

    Args:
        network: any module with `network(images) -> logits [B, classes]`, or an object that holds them as `.logits`
            or ["logits"] (Hugging Face; torchvision's Inception and GoogLeNet in training).
        features: names of modules (as in `network.named_modules()`) whose outputs are the features, in order. A form
            may follow a name, see `forms.Tap`: "blocks.2:map", "blocks.2:class" or "blocks.2:mean" for tokens,
            "layers.1:nhwc" for maps with the channels last.
        penultimate: name of the module whose *input* is the penultimate vector, appended as the last feature; by
            default the last `nn.Linear`. None appends the global average of the last feature instead.
        copy: keep a copy of every feature. By default only features that the network changes in place afterwards
            (`ReLU(inplace=True)`, `+=`) are copied; PyTorch's version counters show them in the first forward of each
            mode. The counters do not see writes through `.data` or numpy, which need copy=True.

    A feature is the output of its module, also if the network then changes that tensor in place. The network has the
    hooks only during a call with `return_features=True`, so the bare network, another `Tapped` of it, copies and
    pickles do not have them. Threads may call one `Tapped` at the same time. The state dict is the network's own,
    without a prefix, so `torch.func.functional_call` and torch.distributed.checkpoint take `tapped.network`.
    `torch.compile` traces it whole.

    Outputs that are no tensors, and modules that run more than once or not at all in the calling thread's forward, are
    refused; so are modules inside a checkpoint with `use_reentrant=True`, where they run without gradients.

    Raises:
        ValueError: no module of that name; the message suggests the nearest, and lists the names at the top.
        TypeError: `network` is no module, or a name is no str.
    """

    def __init__(
        self,
        network: nn.Module,
        features: str | Sequence[str] = (),
        penultimate: str | None = "auto",
        copy: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise TypeError(f"network: expected a torch.nn.Module, got {type(network).__name__}")
        self.network = network
        self.taps = tap_names(features)
        self.copy = checks.boolean("copy", copy)
        if penultimate is not None and not isinstance(penultimate, str):
            raise TypeError(f"penultimate: expected the name of a module or None, got {penultimate!r}")
        modules = dict(network.named_modules())
        if penultimate == "auto":
            linears = [name for name, module in modules.items() if name and isinstance(module, nn.Linear)]
            if not linears:
                raise ValueError(
                    "penultimate: the network has no nn.Linear inside; name a module whose input is the vector, or None"
                )
            penultimate = linears[-1]
        self.penultimate = penultimate
        if not self.taps and penultimate is None:
            raise ValueError("features: expected at least one name when penultimate is None")
        self._forms = [parse_tap(text) for text in self.taps]
        tapped = [("features", form.module) for form in self._forms]
        if penultimate is not None:
            tapped.append(("penultimate", penultimate))
        for argument, name in tapped:
            if name not in modules or name == "":
                raise ValueError(f"{argument}: {_no_such_module(name, modules)}")
        self._captured: dict[tuple[int, str], _Captured] = {}  # by thread and tap; empty outside a forward
        self._changed: set[str] = set()  # taps that were changed in place; they are copied from then on
        self._observed_modes: set[tuple[bool, bool]] = set()  # in these modes a forward has filled `_changed`
        self.register_state_dict_post_hook(_without_prefix)
        self.register_load_state_dict_pre_hook(_with_prefix)

    @property
    def head(self) -> nn.Module | None:
        """The module behind the penultimate vector, or None."""
        return self.network.get_submodule(self.penultimate) if self.penultimate else None

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor | tuple[list[Tensor], Tensor]:
        """Logits, or (features, logits); the last feature is a vector [B, D] per image."""
        if not return_features:
            return logits_of(self.network(x))
        traced = torch.compiler.is_compiling()
        thread = 0 if traced else threading.get_ident()
        mode = (self.training, torch.is_grad_enabled())
        copy_all = traced or self.copy or mode not in self._observed_modes
        capture = partial(self._capture, thread, mode[1], copy_all)
        forms = [*self._forms, Tap(LAST)] if self.penultimate else self._forms
        names = list(dict.fromkeys(form.module for form in forms))
        after: After = {
            self.network.get_submodule(name): partial(_on_output, capture, name) for name in names if name != LAST
        }
        before: Before = {self.head: partial(_on_input, capture)} if self.head is not None else {}
        try:
            logits = logits_of(call(self.network, x, after, before))
            features = {name: self._feature(thread, name, logits) for name in names}
        finally:
            for name in names:
                self._captured.pop((thread, name), None)
        if copy_all and not traced:
            self._observed_modes.add(mode)
        result = [form.convert(features[form.module], *x.shape[-2:]) for form in forms]
        last = result.pop().flatten(1) if self.penultimate else _vector(result[-1])
        return [*result, last], logits

    def _capture(self, thread: int, grad: bool, copy: bool, name: str, module: nn.Module, value: Any) -> None:
        """Store the `value` at the tap `name`; the hooks call this."""
        if thread and thread != threading.get_ident():
            return  # another thread's forward of the same module
        module_name = name or self.penultimate
        if not isinstance(value, Tensor):
            raise TypeError(f"features: expected {module_name!r} to give one tensor, got {type(value).__name__}")
        if (thread, name) in self._captured:
            raise RuntimeError(f"features: {module_name!r} runs more than once in a forward")
        lost = grad and not torch.is_grad_enabled() and self._trains(module, module_name)
        versioned = bool(thread) and not value.is_inference()  # a compiler and inference mode count no versions
        copied = value.clone() if copy or not versioned or name in self._changed else None
        self._captured[thread, name] = _Captured(value, value._version if versioned else -1, copied, lost)

    def _feature(self, thread: int, name: str, logits: Tensor) -> Tensor:
        """The feature of a tap after the forward: the tensor itself, or the copy if the tensor was changed since."""
        module_name = name or self.penultimate
        result = self._captured.get((thread, name))
        if result is None:
            raise RuntimeError(f"features: {module_name!r} did not run in this forward (in the thread that called it)")
        if result.lost and _has_python_function(logits):
            raise RuntimeError(
                f"features: {module_name!r} trains, but runs without gradients inside a function that differentiates "
                "itself, so that no loss on its feature would reach it; use torch.utils.checkpoint with "
                "use_reentrant=False"
            )
        if result.version == -1:
            assert result.copy is not None
            return result.copy
        if result.tensor._version == result.version:
            return result.tensor
        self._changed.add(name)
        if result.copy is None:
            raise RuntimeError(
                f"features: {module_name!r} was changed in place after it ran, unlike in earlier forwards, so its "
                "feature is lost. From the next forward on it is copied; if changes depend on data, use "
                "Tapped(..., copy=True)"
            )
        return result.copy

    def _trains(self, module: nn.Module, name: str | None) -> bool:
        """Whether a parameter of the module, or of the nearest enclosing module with parameters, gets gradients."""
        parameters = list(module.parameters())
        while not parameters and name:
            name = name.rpartition(".")[0]
            parameters = list(self.network.get_submodule(name).parameters())
        return any(p.requires_grad for p in parameters)


def _on_output(capture: Any, name: str, module: nn.Module, _inputs: Any, output: Any) -> None:
    capture(name, module, output)


def _on_input(capture: Any, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
    # PyTorch passes no kwargs if another thread has removed this hook since the call began.
    capture(LAST, module, next(iter((*args, *(kwargs or {}).values())), None))


def _has_python_function(output: Tensor) -> bool:
    """Whether `output` comes from an autograd.Function written in Python, such as a reentrant checkpoint."""
    nodes, visited = [output.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in visited:
            continue
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            return True
        visited.add(node)
        nodes += [earlier for earlier, _ in node.next_functions]
    return False


def _vector(feature: Tensor) -> Tensor:
    return global_pool(feature) if feature.dim() == 4 else feature.flatten(1)


def _no_such_module(name: str, modules: dict[str, nn.Module]) -> str:
    near = difflib.get_close_matches(name, [n for n in modules if n], n=1)
    top = ", ".join(n for n in modules if n and "." not in n)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"the network has no module {name!r}{hint}; at its top it has {top}"


def _without_prefix(_module, state_dict, prefix, _metadata) -> None:
    _renamed(state_dict, f"{prefix}network.", prefix)


def _with_prefix(_module, state_dict, prefix, *_) -> None:
    _renamed(state_dict, prefix, f"{prefix}network.")


def _renamed(state_dict, old: str, new: str) -> None:
    """Give the keys that begin with `old` the beginning `new`. All are taken out first: a new key may be an old one."""
    moved = {new + key[len(old) :]: state_dict.pop(key) for key in [k for k in state_dict if k.startswith(old)]}
    state_dict.update(moved)
