"""Checks of shapes, dtypes, devices and options: always on the host, before any work.

Every message names the argument, its value and what was expected.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..nearest import nearest
from .status import Code, guard

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INDICES = (torch.int64, torch.int32)


def tensor(name: str, value: Any, *, shape: tuple[int | str, ...], dtypes: Iterable[torch.dtype] = FLOATS) -> Tensor:
    """`value` if it is a dense tensor of the wanted shape and dtype.

    `shape` holds a size, or a letter (any size of at least 1) for each dimension.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    require_dense(name, value)
    if value.dtype not in tuple(dtypes):
        names = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(f"{name}: expected dtype {names}, got {str(value.dtype).removeprefix('torch.')}")
    if value.dim() != len(shape):
        raise ValueError(f"{name}: expected shape {_sizes(shape)}, got {list(value.shape)}")
    for axis, (size, want) in enumerate(zip(value.shape, shape, strict=True)):
        if isinstance(want, int) and size != want:
            raise ValueError(f"{name}: expected shape {_sizes(shape)}, got {list(value.shape)} (dimension {axis})")
        if isinstance(want, str) and size < 1:
            raise ValueError(
                f"{name}: expected shape {_sizes(shape)} with every dimension at least 1, got {list(value.shape)}"
            )
    return value


def require_dense(name: str, value: Tensor) -> None:
    """TypeError for a sparse or nested tensor."""
    if value.layout != torch.strided or value.is_nested:
        kind = "a nested one" if value.is_nested else f"layout {value.layout}"
        raise TypeError(f"{name}: expected a dense tensor, got {kind}")


def same_device(**tensors: Tensor) -> torch.device:
    """The one device of all `tensors`, or ValueError naming two that differ."""
    (first, t0), *rest = tensors.items()
    for name, t in rest:
        if t.device != t0.device:
            raise ValueError(f"{name} is on {t.device} but {first} is on {t0.device}; expected one device")
    return t0.device


def number(name: str, value: Any) -> float:
    """`value` as a float (numpy's numbers too; bool is refused)."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        bits = int(value).bit_length()  # the number's digits would fill the screen
        raise ValueError(f"{name}: expected a number below 1.8e308, got an int of {bits} bits") from None


def unset_or_finite(name: str, value: Any, dtype: torch.dtype) -> float:
    """`value` as a float that is NaN or finite in `dtype`."""
    value = number(name, value)
    if abs(value) > torch.finfo(dtype).max:
        raise ValueError(f"{name}: expected a number that is finite in {dtype}, or NaN for unset, got {value:g}")
    return value


def finite(name: str, value: Any, dtype: torch.dtype) -> float:
    """`value` as a float that is finite in `dtype`."""
    value = number(name, value)
    if not abs(value) <= torch.finfo(dtype).max:
        raise ValueError(f"{name}: expected a number that is finite in {dtype}, got {value:g}")
    return value


def positive(name: str, value: float, *, finite: bool = True) -> float:
    """`value` as a float > 0."""
    value = number(name, value)
    if not value > 0 or (finite and value == math.inf):
        raise ValueError(f"{name}: expected a positive{' finite' if finite else ''} number, got {value}")
    return value


def divisor(name: str, value: float, dtype: torch.dtype = torch.float32, dividend: float = 1.0) -> float:
    """`value` as a finite float > 0 by which `dividend` can be divided without overflow of `dtype`."""
    value = positive(name, value)
    largest = torch.finfo(dtype).max
    if dividend / largest > value:
        raise ValueError(f"{name}: expected a number whose inverse is finite in {dtype}, got {value:g}")
    return value


def non_negative(name: str, value: float) -> float:
    """`value` as a finite float >= 0."""
    value = number(name, value)
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}: expected a finite number >= 0, got {value}")
    return value


def fraction(name: str, value: float) -> float:
    """`value` as a float in [0, 1]."""
    value = number(name, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected a number in [0, 1], got {value}")
    return value


def integer(name: str, value: Any, *, least: int, below: int | None = None) -> int:
    """`value` as an int >= least, and < below if that is given (bool is refused)."""
    if type(value) is not int:
        value = _whole(name, value)
    if value < least:
        raise ValueError(f"{name}: expected an int of at least {least}, got {value}")
    if below is not None and value >= below:
        raise ValueError(f"{name}: expected an int below {below}, got {value}")
    return value


def _whole(name: str, value: Any) -> int:
    """The int that `value` equals exactly; not a bool, nor 2.7, nor an array or tensor, which int() would truncate."""
    if not isinstance(value, bool | np.bool_) and not (isinstance(value, Tensor) and value.dtype == torch.bool):
        try:
            return operator.index(value)
        except (TypeError, ValueError, RuntimeError):  # RuntimeError: on the meta device
            pass
    raise TypeError(f"{name}: expected an int, got {value!r}")


def path(name: str, value: Any) -> str:
    """`value`, if it can name a file or a folder, with a leading `~` or `~user` replaced by that home directory."""
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError(f"{name}: expected the name of a file or a folder, got {value!r}")
    return os.path.expanduser(value)


def choice(name: str, value: Any, options: Iterable[Any]) -> Any:
    """`value` if it is one of `options`; otherwise a ValueError that suggests the nearest."""
    options = list(options)
    if not isinstance(value, (Tensor, np.ndarray)) and value in options:  # those two compare to more than a bool
        return value
    near = nearest(value, map(str, options))
    hint = "" if near is None else f"; did you mean {near!r}?"
    raise ValueError(f"{name}: expected one of {', '.join(repr(o) for o in options)}, got {value!r}{hint}")


def known_names(owner: str, given: Iterable[str], known: Iterable[str]) -> None:
    """TypeError for the first name in `given` that is not in `known`; it suggests the nearest."""
    names = list(known)
    for name in given:
        if name not in names:
            near = nearest(name, names)
            hint = f"; it has {', '.join(names)}" if near is None else f"; did you mean {near!r}?"
            raise TypeError(f"{owner} has no option {name!r}{hint}")


def rows_in_range(name: str, index: Tensor, num_data: int) -> Tensor:
    """bool like `index`: True where the row number lies in [0, N). A bad one is an error on the CPU, else flagged."""
    ok = (index >= 0) & (index < num_data)

    def describe(at: tuple[int, ...]) -> Exception:
        where = ", ".join(map(str, at))
        return ValueError(f"{name}[{where}]: expected a row in [0, {num_data}), got {int(index[at])}")

    guard(~ok, Code.INDEX, describe)
    return ok


def finite_rows(name: str, values: Tensor, code: Code) -> Tensor:
    """bool over all but the last dimension: True where the row is finite. A bad one is an error on the CPU."""
    ok = torch.isfinite(values).all(-1)

    def describe(at: tuple[int, ...]) -> Exception:
        row = values[at]
        bad = row[~torch.isfinite(row)][0].item()
        if values.dim() == 3 and len(values) == 1:  # one direction of a bank: the caller's tensor is [B, D]
            at = at[1:]
        where = f"row {', '.join(map(str, at))} " if at else ""
        return ValueError(f"{name}: {where}holds {bad}; expected finite values")

    guard(~ok, code, describe)
    return ok


def norms_in_range(name: str, rows: Tensor, norm: Tensor, dtype: torch.dtype) -> Tensor:
    """bool [B]: True where the norm [B, 1] of the update by a row of `rows` [B, D] is finite in `dtype`."""
    ok = torch.isfinite(norm[:, 0].to(dtype))

    def describe(at: tuple[int, ...]) -> Exception:
        row = rows[at[0]]
        largest = row[row.abs().argmax()].item()
        return ValueError(
            f"{name}: row {at[0]} holds up to {largest:g} and the norm of its update is {float(norm[at[0]]):g}; "
            f"expected a finite bank row, and a norm that is finite in {dtype}"
        )

    guard(~ok, Code.UPDATE_ROW, describe)
    return ok


def boolean(name: str, value: Any) -> bool:
    """`value` if it is True or False (numpy's too). Other values are refused, also if they have a truth value."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def _sizes(shape: tuple[int | str, ...]) -> str:
    """Sizes as text, for errors only: torch.compile cannot trace str() of a symbolic size."""
    return "[" + ", ".join(str(s) for s in shape) + "]"
