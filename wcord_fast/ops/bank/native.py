"""The bank's own writes in compiled code: csrc/cpu/bank.cpp for CPU tensors, csrc/cuda/bank.cu for CUDA tensors."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from .. import checks, native_module, status
from ..status import Code
from .reference import accumulate_dtype, mixed


def bank_update_(bank: Tensor, index: Tensor, rows: Tensor, momentum: float) -> None:
    """Row index[b] of the bank becomes normalise(momentum * row + (1 - momentum) * rows[b]), in place.

    From the bank before the step, in fp32 (fp64 for an fp64 bank), the norm clamped at 1e-12; where an index comes
    twice the last anchor wins, whatever the number of threads.

    Args:
        bank: [N, D] contiguous, fp32, bf16, fp16 or fp64.
        index: int64 or int32 [B] in [0, N).
        rows: [B, D] of any of these dtypes, finite. Both may share memory with the bank.
        momentum: in [0, 1].

    On the CPU an index out of range, or a new row whose norm is not finite, is a ValueError, and nothing is written. On
    CUDA such a row is skipped and sets its bit in the status word. The write counts in the bank's version.
    """
    native = native_module.module()
    index, rows = _apart(index.contiguous(), bank), _apart(rows.contiguous(), bank)
    if rows.numel() == 0:
        return
    acc = accumulate_dtype(bank)
    if bank.device.type != "cpu" and rows.dtype == torch.float64:
        rows = rows.to(acc)  # what overflows there is infinite, hence skipped and flagged
    where = (bank.data_ptr(), native_module.DTYPES[bank.dtype], *bank.shape)
    what = (
        index.data_ptr(),
        index.element_size(),
        index.shape[0],
        rows.data_ptr(),
        native_module.DTYPES[rows.dtype],
    )
    if bank.device.type == "cpu":
        bad = native.cpu_bank_update(*where, *what, momentum, native_module.threads())
        if bad >= 0:
            _refuse(bank, index, rows, momentum, bad)
        _written(bank)
        return
    word = status.word(bank.device)
    code = native.cuda_bank_update(*native_module.stream_of(bank), *where, *what, momentum, word.data_ptr())
    native_module.check_launch("bank_update", code)
    _written(bank)
    status.check_if_asked(bank.device)


def _apart(x: Tensor, bank: Tensor) -> Tensor:
    """`x`, or a copy of it if the writes to `bank` would change it: both contiguous, and not always of one storage."""
    start, other = x.data_ptr(), bank.data_ptr()
    return x.clone() if start < other + bank.nbytes and other < start + x.nbytes else x


def _written(bank: Tensor) -> None:
    if not bank.is_inference():
        torch.autograd.graph.increment_version(bank)


def _refuse(bank: Tensor, index: Tensor, rows: Tensor, momentum: float, bad: int) -> NoReturn:
    """Say what is wrong with an update that was not made, by the reference's checks."""
    checks.rows_in_range("index", index, bank.shape[0])
    checks.finite_rows("rows", rows, Code.UPDATE_ROW)
    new, norm = mixed(bank, index, rows, momentum)
    checks.norms_in_range("rows", rows, norm, new.dtype)
    raise ValueError(f"rows: the norm of the update by row {bad} is at the limit of {new.dtype}")


def bank_init_(rows: Tensor, seed: int, bank_id: int, first_row: int = 0) -> None:
    """Fill `rows` with rows first_row, first_row + 1, ... of the initial bank: uniform(-s, s), s = 1/sqrt(D/3).

    Each value is a function of (seed, bank_id, row, column) alone, computed in fp32 and rounded to the dtype of `rows`.

    Args:
        rows: [n, D] contiguous, fp32, bf16, fp16 or fp64.
        seed: its low 64 bits key the generator.
        bank_id: 0 .. 2^32 - 1, tells the banks of one loss apart.
        first_row: number of the first row; rows are numbered modulo 2^32.
    """
    native = native_module.module()
    if rows.numel() == 0:
        return
    args = (rows.data_ptr(), native_module.DTYPES[rows.dtype], *rows.shape, seed % 2**64, bank_id, first_row)
    if rows.device.type == "cpu":
        native.cpu_bank_init(*args, native_module.threads())
        return
    code = native.cuda_bank_init(*native_module.stream_of(rows), *args)
    native_module.check_launch("bank_init", code)
