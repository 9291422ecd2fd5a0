"""Bad *values* (an index out of range, NaN, a zero row) are errors on the CPU and a status word on a device.

Reading a value on the host would stall a GPU, so there a kernel skips the offending row, gives NaN for its
result and sets a bit in one int32 per device. `wcord_fast.check()` turns the word into the named error;
`WCORD_FAST_CHECK=1` does so after every call.
"""

from __future__ import annotations

import os
from enum import IntFlag

import torch
from torch import Tensor

from .warn import warn_once


class Code(IntFlag):
    """Bits of the device status word."""

    INDEX = 1
    ANCHOR = 2
    UPDATE_ROW = 4
    OT_INPUT = 8
    ZERO_ROW = 16
    MARGINAL = 32
    FEATURE = 64


MESSAGES = {
    Code.INDEX: "a row index was out of [0, N); its anchor's loss is NaN and the row was neither read nor written",
    Code.ANCHOR: "an anchor held NaN or inf; its loss is NaN",
    Code.UPDATE_ROW: "a row of bank_update_ (or its update's norm) or of push_ was not finite; the older row was kept",
    Code.OT_INPUT: "x or y of an optimal-transport call held NaN or inf; its cost is NaN",
    Code.ZERO_ROW: "a row of x or y with nonzero mass was zero under cost='cosine'; its cost is NaN",
    Code.MARGINAL: "a marginal was negative, not finite or did not sum to 1; its cost is NaN",
    Code.FEATURE: "features given to a loss held NaN or inf",
}

_words: dict[torch.device, Tensor] = {}
_unreached: dict[torch.device, Tensor] = {}


def word(device: torch.device) -> Tensor:
    """The status word of `device`: int32 [1], made on first use (so use it once before a graph capture)."""
    device = _indexed(device)
    result = _words.get(device)
    return result if result is not None else _first(_words, device, (1,), torch.int32)


def note_unreached(error: Tensor, iters: int) -> None:
    """Keep the largest marginal error of transport problems that missed their `tol`, and its `iters`.

    Args:
        error: scalar on a device, 0 where all problems have reached it.
    """
    device = _indexed(error.device)
    kept = _unreached.get(device)
    if kept is None:
        kept = _first(_unreached, device, (2,), torch.float64)
    wide = error.double()
    kept.copy_(torch.where(wide > kept[0], torch.stack((wide, torch.full_like(wide, iters))), kept))
    check_if_enabled(device)


def unreached(error: float, iters: int) -> str:
    """The warning's words for such problems."""
    return f"the marginal error is {error:.3g} after {iters} iterations; give more iters, a larger eps or a larger tol"


def guard(bad: Tensor, code: Code, describe) -> None:
    """Report rows that `bad` marks: raise `describe(first bad position)` on the CPU, set `code` elsewhere.

    Args:
        bad: bool tensor of any shape, True where a value is not acceptable.
        code: the bit to set on a device.
        describe: called with the first bad position (a tuple of ints), returns the exception to raise.
    """
    if bad.device.type == "meta":
        return
    if bad.device.type == "cpu":
        if bad.any():
            raise describe(tuple(int(i) for i in bad.nonzero()[0]))
        return
    status = word(bad.device)
    status.bitwise_or_(bad.any().to(torch.int32) * int(code))
    check_if_enabled(bad.device)


def check_if_enabled(device: torch.device) -> None:
    """`check(device)` under WCORD_FAST_CHECK=1. Call it after every launch of a kernel that may flag."""
    if os.environ.get("WCORD_FAST_CHECK") == "1":
        check(device)


def check(device: torch.device | str | None = None) -> None:
    """Raise the error that a device has flagged since the last call, and clear the flag (synchronises).

    A `tol` of optimal transport that was not reached on a device is a warning, as it is on the CPU.

    Args:
        device: the device to look at; None looks at every device that has been used.
    Raises:
        ValueError: a kernel met a bad value (the message says which kind), or there is no such device.
    """
    try:
        devices = list(_words | _unreached) if device is None else [_present(torch.device(device))]
    except (RuntimeError, TypeError, AssertionError) as e:
        raise ValueError(f"device: expected one of this machine, got {device!r}: {str(e).splitlines()[0]}") from None
    for dev in devices:
        if dev in _unreached:
            error, iters = _unreached[dev].tolist()
            if error:
                _unreached[dev].zero_()
                warn_once(f"on {dev}: the tol of a transport call was not reached: {unreached(error, int(iters))}")
        if dev not in _words:
            continue
        flags = int(_words[dev].item())
        if flags:
            _words[dev].zero_()
            text = "; ".join(MESSAGES[c] for c in Code if c & flags)
            raise ValueError(f"on {dev}: {text} (WCORD_FAST_CHECK=1 checks after every call)")


def _first(kept: dict[torch.device, Tensor], device: torch.device, shape: tuple[int, ...], dtype) -> Tensor:
    """Zeros, made at the first use and writable even if that was in inference mode.

    Threads that come here at once all get one tensor: flags in another tensor would be lost.
    """
    with torch.inference_mode(False):
        return kept.setdefault(device, torch.zeros(shape, dtype=dtype, device=device))


def _present(device: torch.device) -> torch.device:
    """`device` with its index; RuntimeError or AssertionError if this machine has no such device."""
    device = _indexed(device)
    if device not in _words and device not in _unreached:
        count = torch.get_device_module(device).device_count()
        if (device.index or 0) >= count:
            raise RuntimeError(f"the number of its {device.type} devices is {count}")
    return device


def _indexed(device: torch.device) -> torch.device:
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device
