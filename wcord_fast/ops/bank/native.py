"""The bank's own writes in compiled code: csrc/cpu/bank_update.cpp (CPU tensors), csrc/cuda/bank_update.cu (CUDA)."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from .. import checks, native_module, status
from ..status import Code
from ..tensors import accumulation_dtype, count_write
from .reference import MIN_NORM, mixed


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
    index, rows = _without_overlap(index.contiguous(), bank), _without_overlap(rows.contiguous(), bank)
    if rows.numel() == 0:
        return
    acc = accumulation_dtype(bank)
    if bank.device.type != "cpu" and rows.dtype == torch.float64:
        rows = rows.to(acc)  # a value that overflows there is infinite, so its row is skipped and flagged
    on_cpu = bank.device.type == "cpu"
    record = native.BankUpdate(
        bank=bank.data_ptr(),
        bank_dtype=native_module.dtype_code(bank.dtype),
        num_data=bank.shape[0],
        dim=bank.shape[1],
        index=index.data_ptr(),
        index_bytes=index.element_size(),
        batch=index.shape[0],
        rows=rows.data_ptr(),
        rows_dtype=native_module.dtype_code(rows.dtype),
        momentum=momentum,
        min_norm=MIN_NORM,
        **(native_module.on_cpu() if on_cpu else native_module.on_cuda(bank)),
    )
    if on_cpu:
        bad = native.cpu_bank_update(record)
        if bad >= 0:
            _refuse(bank, index, rows, momentum, bad)
        count_write(bank)
        return
    native_module.check_launch("bank_update", native.cuda_bank_update(record))
    count_write(bank)
    status.check_if_enabled(bank.device)


def _without_overlap(x: Tensor, bank: Tensor) -> Tensor:
    """`x`, or a copy if writes to `bank` would change it. Both are contiguous."""
    start, other = x.data_ptr(), bank.data_ptr()
    return x.clone() if start < other + bank.nbytes and other < start + x.nbytes else x


def _refuse(bank: Tensor, index: Tensor, rows: Tensor, momentum: float, bad: int) -> NoReturn:
    """Raise the error of a refused update, by the reference's checks."""
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
    on_cpu = rows.device.type == "cpu"
    record = native.BankInit(
        out=rows.data_ptr(),
        dtype=native_module.dtype_code(rows.dtype),
        num_rows=rows.shape[0],
        dim=rows.shape[1],
        seed=seed % 2**64,
        bank_id=bank_id,
        first_row=first_row,
        **(native_module.on_cpu() if on_cpu else native_module.on_device(rows)),
    )
    if on_cpu:
        native.cpu_bank_init(record)
        return
    native_module.check_launch("bank_init", native.cuda_bank_init(record))
