"""Modules that notice when a buffer has lost its values, and records of the options that a buffer belongs to."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ..ops.tensors import write_count
from ..ops.warn import warn


class StateModule(nn.Module):
    """A module that tracks which of its buffers hold values.

    - A buffer made on meta holds no values after `to_empty`. Its use raises until `reset_parameters`, a state dict, or
      any other write has filled it.
    - `constants` names buffers that a cast does not change and `to_empty` does not lose. They follow buffer `beside`.
    - `scratch` names buffers that begin as zeros and hold no state between calls.
    - `wide` names floating buffers that a cast of the module never makes narrower than fp32. Integers stay as they are.
    - `tables` holds integers on the batches' device. They are no buffers: averages of buffers would round them.
    """

    wide: tuple[str, ...] = ()
    scratch: ClassVar[tuple[str, ...]] = ()
    constants: tuple[str, ...] = ()
    beside: ClassVar[str] = ""

    def __init__(self) -> None:
        super().__init__()
        self._empty: dict[str, tuple[Tensor, int | None]] = {}  # buffers without values, counts of writes
        self._strict: bool | None = None  # `strict` of the load that began at this module; None when none is running
        self._misfits: list[str] = []  # entries that the last load did not take, and why
        self.tables: dict[str, Tensor] = {}

    def require_filled(self) -> None:
        """RuntimeError if a buffer has had no values since `to_empty`."""
        if not self._empty:
            return
        unfilled = [
            n for n, (t, writes) in self._empty.items() if self._buffers.get(n) is t and write_count(t) == writes
        ]
        if unfilled:
            raise RuntimeError(
                f"{type(self).__name__}: {', '.join(unfilled)} hold no values since to_empty; call reset_parameters() "
                "of every module that has it, or load a state dict"
            )
        self._empty = {}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False):
        """As in `nn.Module`; `strict=False` loads a state of other sizes or options in part, with a warning."""
        self._strict, self._misfits = strict, []
        try:
            keys = super().load_state_dict(state_dict, strict, assign)
        finally:
            self._strict = None
        if self._misfits:
            warn(f"{type(self).__name__}: the state dict is loaded in part; {'; '.join(self._misfits)}")
        return keys

    def report_misfits(self, misfits: list[str], unexpected_keys: list[str]) -> None:
        """Report a state dict of other sizes or options: RuntimeError under `strict=True`, else a warning."""
        if not misfits:
            return
        message = [*misfits, "with strict=False the rest is loaded"]
        if self._strict:
            raise RuntimeError("\n\t".join([f"Error(s) in loading state_dict for {type(self).__name__}:", *message]))
        if self._strict is None:  # a child of the loaded module: torch raises for unexpected keys if `strict`
            unexpected_keys += misfits
        self._misfits = misfits

    def __getstate__(self):
        return self.__dict__ | {"_strict": None}

    def _apply(self, fn, recurse=True):
        buffers: dict[str, Any] = self._buffers
        before = dict(buffers)
        constants = {name: buffers[name] for name in self.constants}
        buffers.update(dict.fromkeys(constants))  # nn.Module skips a buffer that is None, and the order stays
        super()._apply(fn, recurse)
        for name in self.wide:
            old, new = before[name], buffers[name]
            if new is not None and new.itemsize < min(old.itemsize, torch.float32.itemsize):
                buffers[name] = old.to(new.device, torch.float32)
        for name, value in constants.items():
            buffers[name] = self.moved(value)
        for name, value in buffers.items():
            old = before[name]
            if value is not None and value.dtype != old.dtype and not old.is_floating_point():  # nn.Module.type(...)
                buffers[name] = old.to(value.device)
        for name, value in buffers.items():
            old = before[name]
            if value is not None and old.is_meta and not value.is_meta:
                if name in self.scratch:
                    value.zero_()
                else:
                    self._empty[name] = value, write_count(value)
        return self

    def _save_to_state_dict(self, *args):
        record, held = getattr(self, "record", None), self._buffers.get("made_with")
        if record is not None and held is not None and not held.is_meta:  # an average of buffers may have cut its bytes
            held.copy_(record.tensor(held.device))
        super()._save_to_state_dict(*args)

    def _load_from_state_dict(self, *args):
        super()._load_from_state_dict(*args)
        for name in self.constants:  # `assign` may have put the others on another device
            setattr(self, name, self.moved(getattr(self, name)))

    def table(self, name: str, device: torch.device) -> Tensor:
        """One of `tables`, on `device`. On meta it stays where it is."""
        table = self.tables[name]
        if table.device != device and device.type != "meta":
            self.tables[name] = table = table.to(device)
        return table

    def moved(self, value: Tensor) -> Tensor:
        """A constant, on the device of the buffer `beside`. If that is on meta, the constant stays where it is."""
        beside = cast(Tensor, self._buffers[self.beside])  # not the attribute: reading that may restore its values
        return value if beside.is_meta else value.to(beside.device)


class Record:
    """Named numbers as bytes: a uint8 tensor that no cast or checkpoint changes.

    Args:
        facts: name -> an int of 64 bits, or a float. Their order is the layout.
    """

    def __init__(self, **facts: int | float):
        self.facts = facts

    def tensor(self, device: torch.device | str) -> Tensor:
        """uint8 [8 * number of facts]."""
        packed = b"".join(struct.pack("<d" if isinstance(v, float) else "<q", v) for v in self.facts.values())
        return torch.tensor(list(packed), dtype=torch.uint8, device=device)

    def differences(self, other: Any) -> dict[str, int | float]:
        """The facts in which another record's tensor differs, with its values; empty if `other` is no such record."""
        if not isinstance(other, Tensor) or other.dtype != torch.uint8 or other.is_meta:
            return {}
        packed = bytes(other.detach().cpu().flatten().tolist())
        result = {}
        for i, (name, own) in enumerate(self.facts.items()):
            part = packed[8 * i : 8 * i + 8]
            if len(part) == 8:
                value = struct.unpack("<d" if isinstance(own, float) else "<q", part)[0]
                if not math.isclose(value, own, rel_tol=1e-5 if isinstance(own, float) else 0.0):
                    result[name] = value
        return result


def whole(tensor: Tensor) -> Tensor:
    """A DTensor's whole value (collective); any other tensor as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
