"""The launches before and after the pass over the bank, mostly one program per (anchor, direction).

Before: the anchor's bf16 terms are written out, so that the pass can feed its tensor cores from shared memory. After:
the partials of all splits are added in a fixed order, the positive row is read and scored in fp32, and the values are
checked. An anchor that is not finite, or whose index is out of [0, N), has NaN in all its results and sets its bit in
the status word.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_terms import LN2, log1p, offset2
from .triton_tiles import SIZES, charge, class_of, is_row, split


@triton.jit(do_not_specialize=SIZES)
def terms_kernel(
    x_ptr,  # fp32 or fp16, contiguous, `plane` numbers
    terms_ptr,  # bf16 [X_TERMS, plane]
    plane,
    BLOCK: tl.constexpr, X_TERMS: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """The bf16 terms of BLOCK numbers a program."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = at < plane
    x0, x1, x2 = split(tl.load(x_ptr + at, mask=ok, other=0.0), X_TERMS, INTERPRET)
    tl.store(terms_ptr + at, x0, mask=ok)
    if X_TERMS > 1:
        terms_ptr += plane
        tl.store(terms_ptr + at, x1, mask=ok)
    if X_TERMS > 2:
        terms_ptr += plane  # not 2 * plane at once, which may be beyond int32
        tl.store(terms_ptr + at, x2, mask=ok)


@triton.jit
def _checked(x, index, num_data, status_ptr, INDEX_BIT: tl.constexpr, ANCHOR_BIT: tl.constexpr):
    """(whether the anchor x [DP] is valid, its index or 0); if it is not, its bits are set."""
    inside = is_row(index, num_data)
    wrong = tl.sum(tl.where(tl.abs(x) <= 3.4028234663852886e38, 0, 1), 0)  # NaN compares as false
    bits = tl.where(inside, 0, INDEX_BIT) + tl.where(wrong > 0, ANCHOR_BIT, 0)
    tl.atomic_or(status_ptr, bits, mask=bits != 0)
    return bits == 0, tl.where(inside, index, 0).to(tl.int32)


@triton.jit
def _anchor(
    x_ptr, bank0_ptr, bank1_ptr, bank_stride, index_ptr, b, s, batch, num_data, first_row, num_rows, status_ptr,
    D: tl.constexpr, DP: tl.constexpr, INDEX_BIT: tl.constexpr, ANCHOR_BIT: tl.constexpr,
):  # fmt: skip
    """(x [DP], its positive row [DP], index, whether the banks hold that row, whether all is valid) of one anchor.

    Rows in fp32, the positive zeros where the banks do not hold it.
    """
    d = tl.arange(0, DP)
    bank_ptr = bank0_ptr
    if s == 1:
        bank_ptr = bank1_ptr
    index = tl.load(index_ptr + b)
    x = tl.load(x_ptr + (s.to(tl.int64) * batch + b) * D + d, mask=d < D, other=0.0).to(tl.float32)
    row = index - first_row
    held = is_row(row, num_rows)
    end = tl.where(held, D, 0)
    positive = tl.load(bank_ptr + row * bank_stride + d, mask=d < end, other=0.0).to(tl.float32)
    valid, index = _checked(x, index, num_data, status_ptr, INDEX_BIT, ANCHOR_BIT)
    return x, positive, index, held, valid


@triton.jit
def _sum_parts(part_ptr, at, step, splits, D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr):
    """Sum over splits of the rows part[i * step + at] [DP]: blocks of BLOCK splits, in order."""
    d = tl.arange(0, DP)
    total = tl.zeros([DP], tl.float32)
    for i0 in range(0, splits, BLOCK):
        i = i0 + tl.arange(0, BLOCK)
        rows = (i.to(tl.int64) * step + at) * D
        total += tl.sum(
            tl.load(part_ptr + rows[:, None] + d[None, :], mask=(i < splits)[:, None] & (d < D)[None, :], other=0.0), 0
        )
    return total


@triton.jit
def _sum_scalars(part_ptr, at, step, splits, BLOCK: tl.constexpr):
    total = 0.0
    for i0 in range(0, splits, BLOCK):
        i = i0 + tl.arange(0, BLOCK)
        total += tl.sum(tl.load(part_ptr + i.to(tl.int64) * step + at, mask=i < splits, other=0.0), 0)
    return total


@triton.jit(do_not_specialize=SIZES)
def nce_finish_kernel(
    x_ptr, bank0_ptr, bank1_ptr, bank_stride, index_ptr, log_z_ptr, label_ptr, class_start_ptr,
    loss_part_ptr, grad_part_ptr,  # fp32 [splits, S, B], [splits, S, B, D]
    status_ptr,  # int32 [1]
    loss_ptr, loss_stride, grad_ptr, grad_stride,  # fp32 [S, B], [S, B, D], directions loss_stride, grad_stride apart
    batch, num_data, first_row, num_rows, splits, k, temperature,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr,
    MEMBER: tl.constexpr, CHARGE: tl.constexpr, NEEDS_GRAD: tl.constexpr, EPS: tl.constexpr,
    INDEX_BIT: tl.constexpr, ANCHOR_BIT: tl.constexpr,
):  # fmt: skip
    """loss = softplus(-u_0) + sum over splits + K_b log(1 + EPS N / K_b), and its gradient. Grid (B, S).

    The first and the last term belong to the part of the bank that holds the positive.
    """
    b, s = tl.program_id(0), tl.program_id(1)
    x, positive, index, held, valid = _anchor(
        x_ptr, bank0_ptr, bank1_ptr, bank_stride, index_ptr, b, s, batch, num_data, first_row, num_rows, status_ptr,
        D, DP, INDEX_BIT, ANCHOR_BIT,
    )  # fmt: skip
    label = class_of(label_ptr, index, True, MEMBER)
    k_b, weight = charge(index, label, True, num_data, k, class_start_ptr, MEMBER, CHARGE)
    at, step = s.to(tl.int64) * batch + b, tl.num_programs(1).to(tl.int64) * batch
    u = (tl.sum(x * positive, 0) / temperature) - offset2(k_b, num_data, tl.load(log_z_ptr + s), EPS) * LN2
    t = tl.exp(-tl.abs(u))
    negatives = _sum_scalars(loss_part_ptr, at, step, splits, BLOCK) * LN2 * weight
    own = tl.maximum(-u, 0.0) + log1p(t)
    loss = tl.where(held, own + negatives + k_b * log1p(EPS * num_data / k_b), negatives)
    tl.store(loss_ptr + s.to(tl.int64) * loss_stride + b, tl.where(valid, loss, float("nan")))
    if NEEDS_GRAD:
        grad = _sum_parts(grad_part_ptr, at, step, splits, D, DP, BLOCK) * weight
        grad -= tl.where(u >= 0, t, 1.0) / (1.0 + t) * positive  # zeros if not held
        grad = tl.where(valid, grad / temperature, float("nan"))
        d = tl.arange(0, DP)
        tl.store(grad_ptr + s.to(tl.int64) * grad_stride + b.to(tl.int64) * D + d, grad, mask=d < D)


@triton.jit(do_not_specialize=SIZES)
def mean_finish_kernel(
    x_ptr, index_ptr,
    grad_part_ptr, status_ptr,
    mean_ptr, mean_stride, grad_ptr, grad_stride,
    batch, num_data, splits,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr, NEEDS_GRAD: tl.constexpr,
    INDEX_BIT: tl.constexpr, ANCHOR_BIT: tl.constexpr,
):  # fmt: skip
    """The mean negative row and its product with the anchor. Grid (B, S)."""
    b, s = tl.program_id(0), tl.program_id(1)
    d = tl.arange(0, DP)
    at, step = s.to(tl.int64) * batch + b, tl.num_programs(1).to(tl.int64) * batch
    x = tl.load(x_ptr + at * D + d, mask=d < D, other=0.0).to(tl.float32)
    valid, _ = _checked(x, tl.load(index_ptr + b), num_data, status_ptr, INDEX_BIT, ANCHOR_BIT)
    grad = tl.where(valid, _sum_parts(grad_part_ptr, at, step, splits, D, DP, BLOCK), float("nan"))
    tl.store(mean_ptr + s.to(tl.int64) * mean_stride + b, tl.sum(x * grad, 0))
    if NEEDS_GRAD:
        tl.store(grad_ptr + s.to(tl.int64) * grad_stride + b.to(tl.int64) * D + d, grad, mask=d < D)


@triton.jit(do_not_specialize=SIZES)
def log_z_finish_kernel(
    x_ptr, bank0_ptr, bank1_ptr, bank_stride, index_ptr, label_ptr, class_start_ptr,
    top_ptr, sum_ptr, status_ptr,
    out_ptr, out_stride,  # fp32 [S, B]
    count_ptr,  # fp32 [B]
    batch, num_data, first_row, num_rows, splits, k, temperature,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr, MEMBER: tl.constexpr, CHARGE: tl.constexpr,
    INDEX_BIT: tl.constexpr, ANCHOR_BIT: tl.constexpr,
):  # fmt: skip
    """Per anchor, the log-sum-exp of s / tau over the positive and the negatives, and K_b + 1. Grid (B, S)."""
    b, s = tl.program_id(0), tl.program_id(1)
    x, positive, index, held, valid = _anchor(
        x_ptr, bank0_ptr, bank1_ptr, bank_stride, index_ptr, b, s, batch, num_data, first_row, num_rows, status_ptr,
        D, DP, INDEX_BIT, ANCHOR_BIT,
    )  # fmt: skip
    label = class_of(label_ptr, index, True, MEMBER)
    k_b, weight = charge(index, label, True, num_data, k, class_start_ptr, MEMBER, CHARGE)
    at, step = s.to(tl.int64) * batch + b, tl.num_programs(1).to(tl.int64) * batch
    own = tl.sum(x * positive, 0) / temperature / LN2
    top, total = tl.where(held, own, -1e38), tl.where(held, own * 0.0 + 1.0, 0.0)
    for i in range(0, splits):
        part_top, part = tl.load(top_ptr + i * step + at), tl.load(sum_ptr + i * step + at) * weight
        higher = tl.maximum(top, part_top)
        total = total * tl.exp2(top - higher) + part * tl.exp2(part_top - higher)
        top = higher
    tl.store(out_ptr + s.to(tl.int64) * out_stride + b, tl.where(valid, top * LN2 + tl.log(total), float("nan")))
    if s == 0:
        tl.store(count_ptr + b, k_b + 1.0)
