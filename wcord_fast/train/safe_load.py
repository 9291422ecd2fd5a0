"""Reads the tensors of a file by `torch.save` or safetensors, whatever other objects lie beside them.

A pickle is a program that names functions and classes. PyTorch's `weights_only` unpickler runs only those on its own
list. Any other name in a file (an argparse.Namespace, NumPy's scalars, a configuration, a whole module) is not
imported: a stand-in that does nothing takes its place. A file that names functions that run programs is refused.
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
PICKLES = 5  # pickles that begin a file in the format before zip archives: magic, protocol, system, object, keys
DEPTH = 4  # levels of nested mappings that are searched for whole modules

_loading = threading.Lock()  # all threads share PyTorch's table of known names


class HostileFile(ValueError):
    """A file that names a function or module that runs programs."""


class StandIn:
    """An object of a class that is not imported; `state` holds the attributes that the file gives it."""

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
    """Whether the file begins like a safetensors file: with the length of a header, and the header's brace."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def load(path: Path) -> Any:
    """The content of a file by `torch.save`, on the CPU: tensors, plain values, and stand-ins for everything else.

    Whole modules become their state dicts.

    Raises:
        HostileFile: the file names a function or module that runs programs.
        Exception: any error of PyTorch for a damaged file.
    """
    used = used_names(path)
    for name in used:
        if name in HOSTILE or name.partition(".")[0] in HOSTILE:
            raise HostileFile(f"it refers to {name}, which no file of weights needs")
    stand_ins: list[Any] = [(type("StandIn", (KINDS[kind],), {}), name) for name, kind in used.items()]
    with _loading, torch.serialization.safe_globals(stand_ins):
        return _without_modules(torch.load(path, map_location="cpu", weights_only=True))


def used_names(path: Path) -> dict[str, str]:
    """The functions and classes that the file names, and how their objects are filled: "dict", "list" or "" (neither).

    Names in PyTorch's own list are included; `torch.load` then takes its own classes.
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
            except ValueError:  # the last pickle is read; `torch.load` reports damage
                break
    return names


class _Scan:
    """Follows the stack of a pickle without making its objects. A stack item is the name of its class, or None.

    names: receives the names.
    """

    def __init__(self, names: dict[str, str]) -> None:
        self.names = names
        self.stack: list[str | None] = []
        self.marks: list[int] = []
        self.memo: dict[int, str | None] = {}

    def run(self, file: IO[bytes]) -> None:
        """Follow one pickle to its end; ValueError if it is not a pickle."""
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
        self.stack.pop()  # the arguments; the new object is represented by the name of its function

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
    """The entries of the state dict of the module that `module` replaces."""
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
