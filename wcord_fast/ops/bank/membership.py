"""The rows that each anchor draws, as a bit mask or as counts, which are the weights of the dense plan's scores.

The draws are made once and serve both directions. Layouts, N rows, any backend, bit for bit:

    mask    int32 [B, ceil(N / 32)]   bit (r & 31) of word r >> 5 is set iff row r is drawn; spare bits are 0
    counts  int16 [B, stride] for K <= 32767, else int32; stride = N rounded up to even; the spare count is 0

With `held` = (first, n) they cover rows [first, first + n) only, numbered from 0, and their width is that of n rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks, dispatch, native_module, status
from ..sampling import draws
from ..sampling.spec import DrawSpec
from . import reference
from .native_fields import negative_fields
from .part import Part

MOST_INT16 = 2**15 - 1


Held = tuple[int, int] | None


def draw_mask(index: Tensor, num_data: int, spec: DrawSpec, backend: str = "auto", held: Held = None) -> Tensor:
    """int32 [B, ceil(N / 32)]: the rows that each anchor draws at least once, or its pool if `spec.whole_pool`.

    Args:
        index: integer [B], each anchor's own row. On CUDA a bad one, or a bad explicit row, is skipped and sets the
            INDEX bit of the status word.
        num_data: N.
        spec: the negatives, explicit rows included.
        backend: of the draws; with "native" on a CUDA device one kernel makes the draws and the mask.
        held: rows [first, first + n) alone; default all.
    """
    if _by_kernel(index, backend):
        return mask_native(index, num_data, spec, held)
    index = _safe(index, num_data)
    first, n = held or (0, num_data)
    words = (n + 31) // 32
    drawn = reference.row_weights(index, num_data, spec, torch.float32, backend)[:, first : first + n] > 0  # [B, n]
    bits = torch.nn.functional.pad(drawn, (0, 32 * words - n)).view(-1, words, 32)
    value = (bits * (1 << torch.arange(32, device=index.device))).sum(-1)  # in int64: uint32 values
    return torch.where(value >= 2**31, value - 2**32, value).to(torch.int32)


def draw_counts(index: Tensor, num_data: int, spec: DrawSpec, backend: str = "auto", held: Held = None) -> Tensor:
    """int16 or int32 [B, stride]: the number of times that each anchor draws each row. Arguments as for `draw_mask`."""
    if _by_kernel(index, backend):
        return counts_native(index, num_data, spec, held)
    index = _safe(index, num_data)
    if spec.whole_pool:
        raise NotImplementedError("draw_counts: nothing is drawn when the whole pool is scored; see draw_mask")
    first, n = held or (0, num_data)
    rows = draws.draw(index.long(), num_data, spec, backend) - first
    out = _empty_counts(index, n, spec).zero_()
    return out.scatter_add_(1, rows.clamp(0, n - 1), ((rows >= 0) & (rows < n)).to(out.dtype))


def mask_native(index: Tensor, num_data: int, spec: DrawSpec, held: Held = None) -> Tensor:
    """`draw_mask` by the CUDA kernel, which also makes the draws."""
    first, n = held or (0, num_data)
    out = torch.empty((index.shape[0], (n + 31) // 32), dtype=torch.int32, device=index.device)
    return _fill(out, "mask", out.shape[1], index, spec, Part(first, num_data), n)


def counts_native(index: Tensor, num_data: int, spec: DrawSpec, held: Held = None) -> Tensor:
    """`draw_counts` by the CUDA kernel."""
    if spec.whole_pool:
        raise NotImplementedError("draw_counts: nothing is drawn when the whole pool is scored; see draw_mask")
    first, n = held or (0, num_data)
    out = _empty_counts(index, n, spec)
    narrow = out.dtype == torch.int16
    words = out.shape[1] // 2 if narrow else out.shape[1]
    return _fill(out, "count_16" if narrow else "count_32", words, index, spec, Part(first, num_data), n)


def _by_kernel(index: Tensor, backend: str) -> bool:
    if index.device.type != "cuda":
        return False
    return dispatch.resolve("draw", device=index.device, backend=backend).backend == "native"


def _safe(index: Tensor, num_data: int) -> Tensor:
    """`index` with rows out of range replaced on a device. On the CPU the caller has checked it."""
    return (
        index if index.device.type == "cpu" else torch.where(checks.rows_in_range("index", index, num_data), index, 0)
    )


def _empty_counts(index: Tensor, rows: int, spec: DrawSpec) -> Tensor:
    dtype = torch.int16 if spec.k <= MOST_INT16 else torch.int32
    return torch.empty((index.shape[0], rows + rows % 2), dtype=dtype, device=index.device)


def _fill(out: Tensor, kind: str, words: int, index: Tensor, spec: DrawSpec, part: Part, height: int) -> Tensor:
    if out.numel() == 0:
        return out
    index = index.contiguous()
    native = native_module.module()
    negatives, _alive = negative_fields(index, spec, part, height)
    record = native.Membership(
        **negatives,
        kind=native.MEMBERSHIP_KINDS[kind],
        words=words,
        out=out.data_ptr(),
        **native_module.on_cuda(out),
    )
    native_module.check_launch("draw_mask" if kind == "mask" else "draw_counts", native.cuda_membership(record))
    status.check_if_enabled(out.device)
    return out
