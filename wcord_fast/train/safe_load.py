"""Reads what `torch.save` and safetensors wrote, for its tensors, whatever other objects lie beside them.

A pickle is a program that names functions and classes. PyTorch's `weights_only` unpickler runs none but its own; what
else a file names (an argparse.Namespace, numpy's scalars, a configuration, a whole module) is not looked up, but
replaced by one of the stand-ins below, which do nothing. A file that asks for what runs programs is refused.
"""

from __future__ import annotations

import pickletools
import threading
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

HOSTILE = frozenset(  # modules and functions
    (
        *("os", "posix", "nt", "sys", "subprocess", "shutil", "runpy", "importlib", "pty", "socket", "ctypes", "code"),
        *("builtins.eval", "builtins.exec", "builtins.compile", "builtins.open", "builtins.__import__"),
    )
)
PICKLES = 5  # at the head of a file in the format before zip archives: magic, protocol, system, object, keys
DEPTH = 4  # mappings in mappings in which whole modules are looked for

_loading = threading.Lock()  # PyTorch's table of known names is one for all threads


class HostileFile(ValueError):
    """A file that names what runs programs."""


class StandIn:
    """An object of a class that is not looked up; `state` is what the file says of its attributes."""

    state: Any = None

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class DictStandIn(StandIn):
    """Makes a plain mapping instead of an object of a class with items."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return OrderedDict()


class ListStandIn(StandIn):
    """Makes a plain list instead of an object of a class with elements."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return []


KINDS = {"": StandIn, "dict": DictStandIn, "list": ListStandIn}


def is_safetensors(path: Path) -> bool:
    """Whether the file begins as one of safetensors does: the length of a header, and its brace."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def load(path: Path) -> Any:
    """What `torch.save` wrote to `path`, on the CPU: tensors, plain values, and stand-ins for everything else.

    Whole modules become their state dicts.

    Raises:
        HostileFile: the file names what runs programs.
        Exception: whatever PyTorch raises for a damaged file.
    """
    used = used_names(path)
    for name in used:
        if name in HOSTILE or name.partition(".")[0] in HOSTILE:
            raise HostileFile(f"it refers to {name}, which no file of weights needs")
    stand_ins: list[Any] = [(type("StandIn", (KINDS[kind],), {}), name) for name, kind in used.items()]
    with _loading, torch.serialization.safe_globals(stand_ins):
        return _without_modules(torch.load(path, map_location="cpu", weights_only=True))


def used_names(path: Path) -> dict[str, str]:
    """The names of functions and classes in the file, and how objects of them are filled: as a "dict", a "list" or "".

    Those that PyTorch knows itself are among them; it prefers its own.
    """
    names: dict[str, str] = {}
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.namelist():
                if entry.endswith("data.pkl"):
                    with archive.open(entry) as file:
                        _Scan(names).run(file)
        return names
    with path.open("rb") as file:
        for _ in range(PICKLES):
            try:
                _Scan(names).run(file)
            except ValueError:  # no more pickles: `torch.load` says what is wrong with it, if anything is
                break
    return names


class _Scan:
    """Follows the stack of a pickle without making anything: an item is the name that made it, or None.

    names: gets the names.
    """

    def __init__(self, names: dict[str, str]) -> None:
        self.names = names
        self.stack: list[str | None] = []
        self.marks: list[int] = []
        self.memo: dict[int, str | None] = {}

    def run(self, file: IO[bytes]) -> None:
        """Follow one pickle to its end; ValueError if it is none."""
        for op, argument, _ in pickletools.genops(file):
            try:
                self._step(op, argument)
            except IndexError:
                raise ValueError("a pickle that takes more from its stack than it put there") from None

    def _step(self, op: pickletools.OpcodeInfo, argument: Any) -> None:
        effect: Callable[[Any], None] | None = getattr(self, f"_{op.name}", None)
        if effect is not None:
            effect(argument)
            return
        if "GET" in op.name:
            self.stack.append(self.memo.get(argument))
        elif "PUT" in op.name:
            self.memo[argument] = self.stack[-1]
        else:
            if pickletools.markobject in op.stack_before:
                self._pop_mark()
                before = op.stack_before.index(pickletools.markobject)
            else:
                before = len(op.stack_before)
            del self.stack[len(self.stack) - before :]
            self.stack += [None] * len(op.stack_after)

    def _pop_mark(self) -> None:
        del self.stack[self.marks.pop() :]

    def _GLOBAL(self, argument: str) -> None:
        module, name = argument.split(" ", 1)
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))  # Python 2's
        name = f"{module}.{name}"
        self.names.setdefault(name, "")
        self.stack.append(name)

    def _MARK(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def _POP_MARK(self, _: Any) -> None:
        self._pop_mark()

    def _MEMOIZE(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _DUP(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _REDUCE(self, _: Any) -> None:
        self.stack.pop()  # the arguments; what they make is called as what made it

    _NEWOBJ = _BUILD = _REDUCE

    def _SETITEM(self, _: Any) -> None:
        del self.stack[-2:]
        self._filled("dict")

    def _SETITEMS(self, _: Any) -> None:
        self._pop_mark()
        self._filled("dict")

    def _APPEND(self, _: Any) -> None:
        self.stack.pop()
        self._filled("list")

    def _APPENDS(self, _: Any) -> None:
        self._pop_mark()
        self._filled("list")

    def _filled(self, kind: str) -> None:
        name = self.stack[-1]
        if name is not None:
            self.names[name] = kind


def _without_modules(value: Any, depth: int = DEPTH) -> Any:
    """`value` with state dicts in place of whole modules."""
    if isinstance(value, StandIn):
        state = dict(_module_tensors(value))
        return state or value
    if depth and isinstance(value, Mapping):
        return {key: _without_modules(item, depth - 1) for key, item in value.items()}
    return value


def _module_tensors(module: StandIn, prefix: str = "", depth: int = 64) -> Iterator[tuple[str, Tensor]]:
    """What the state dict of the module that `module` stands for holds."""
    state = module.state if isinstance(module.state, Mapping) else {}
    parameters, buffers, modules = (state.get(name) for name in ("_parameters", "_buffers", "_modules"))
    if not isinstance(parameters, Mapping) or not isinstance(buffers, Mapping) or not isinstance(modules, Mapping):
        return
    unsaved = state.get("_non_persistent_buffers_set")
    for name, tensor in [*parameters.items(), *buffers.items()]:
        if isinstance(tensor, Tensor) and not (isinstance(unsaved, set) and name in unsaved):
            yield f"{prefix}{name}", tensor.detach()
    if depth:
        for name, child in modules.items():
            if isinstance(child, StandIn):
                yield from _module_tensors(child, f"{prefix}{name}.", depth - 1)
