"""The Triton kernels that walk the bank (README.md beside this file has the layout and the bytes).

One pass per direction. A program owns BLOCK_B anchors, one direction and one range of bank rows; it walks the range in
tiles of BLOCK_N rows, and uses a tile for everything while it is on chip: scores X M^T, membership, the critic's terms,
and the partial gradient W M. Partial results go to scratch [splits, S, B(, D)], which the kernels of triton_anchor.py
add in a fixed order. No atomics: equal inputs on one device give equal bits.

Rows longer than BLOCK_D = 128 are cut: a program owns BLOCK_D columns of the gradient too, and computes the scores from
pieces. So D / 128 programs repeat the scores; D <= 128 is the case that these kernels are made for.

A tile's share of the gradient is a product of its own, added in fp32: an accumulator left in the tensor cores over a
million rows would collect their truncation. (With one term each, the compiler may merge the two.)
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_terms import LOG2E, add_softplus, exp2, exp2_of_minus, no_softplus, offset2, reciprocal, softplus_sum
from .triton_tiles import (
    SIZES,
    charge,
    class_of,
    load_terms,
    load_tile,
    member_tile,
    multiple_of,
    own_rows,
    product,
    score_tile,
    split,
    where_member,
)


@triton.jit(do_not_specialize=SIZES)
def nce_fwd_kernel(
    terms_ptr,  # bf16 [X_TERMS, S, B, D]: the anchors
    bank0_ptr, bank1_ptr, bank_stride,  # [num_rows, D] for s = 0, 1: rows [first_row, ..) of N, bank_stride apart
    index_ptr,  # int64 [B]
    log_z_ptr,  # fp32 [S]
    member_ptr, member_stride,  # int32 [B, stride] bits or int16/int32 [B, stride] counts, of the rows of the banks
    label_ptr, class_start_ptr,  # int32 [N], int32 [C + 1]
    loss_ptr,  # fp32 [splits, S, B], in base 2
    grad_ptr,  # fp32 [splits, S, B, D]
    batch, num_data, first_row, num_rows, split_rows, k, temperature,
    D: tl.constexpr, BLOCK_D: tl.constexpr, STRIDE_UNIT: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr,
    MEMBER: tl.constexpr, CHARGE: tl.constexpr, NEEDS_GRAD: tl.constexpr, EPS: tl.constexpr,
    X_TERMS: tl.constexpr, M_TERMS: tl.constexpr, W_TERMS: tl.constexpr, LIMIT: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """Loss and gradient of the negatives in rows [n_lo, n_lo + split_rows).

    Grid (blocks of anchors times blocks of columns, splits, S); without gradient one block of columns.

    With u = s / tau - log((c + EPS) Z) and t = exp(-|u|), softplus(u) = max(u, 0) + log(1 + t) and sigmoid(u) is
    1 / (1 + t) or t / (1 + t): one exp2 and one reciprocal per cell, nothing can overflow, and one log for many
    cells (`add_softplus`).
    """
    s, part = tl.program_id(2), tl.program_id(1)
    bank_stride = multiple_of(bank_stride, STRIDE_UNIT)
    D_BLOCKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D if NEEDS_GRAD else 1
    own_d = tl.program_id(0) % D_BLOCKS * BLOCK_D
    b = tl.program_id(0) // D_BLOCKS * BLOCK_B + tl.arange(0, BLOCK_B)
    b_ok = b < batch
    bank_ptr = bank0_ptr
    if s == 1:
        bank_ptr = bank1_ptr
    x0, x1, x2 = load_terms(terms_ptr, s, b, b_ok, batch, 0, D, BLOCK_D, X_TERMS)
    index = own_rows(index_ptr, b, b_ok, num_data)
    label = class_of(label_ptr, index, b_ok, MEMBER)
    own, label_ptr = index - first_row, label_ptr + first_row  # rows are numbered as in the banks from here on
    k_b, _ = charge(index, label, b_ok, num_data, k, class_start_ptr, MEMBER, CHARGE)
    scale = LOG2E / temperature
    offset = offset2(k_b, num_data, tl.load(log_z_ptr + s), EPS)

    loss, lost, factors = no_softplus(BLOCK_B, MEMBER)
    grad = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
    n_lo = part * split_rows
    for n0 in range(n_lo, tl.minimum(n_lo + split_rows, num_rows), BLOCK_N):
        member = member_tile(
            member_ptr, member_stride, b, b_ok, n0, num_rows, own, label, label_ptr, MEMBER, BLOCK_N, INTERPRET
        )
        score, m0, m1, m2 = score_tile(
            terms_ptr, x0, x1, x2, s, b, b_ok, batch, bank_ptr, n0, num_rows, bank_stride, own_d,
            D, BLOCK_D, BLOCK_N, X_TERMS, M_TERMS, LIMIT, INTERPRET,
        )  # fmt: skip
        # In base 2. For a row that is no negative so low that t, w and the loss are zero.
        u = where_member(score * scale - offset[:, None], -1e30, member, MEMBER)
        t = exp2_of_minus(u, INTERPRET)
        r = reciprocal(1.0 + t, INTERPRET)
        w = tl.where(u >= 0, r, t * r)
        loss, lost, factors = add_softplus(loss, lost, factors, u, t, member, MEMBER, INTERPRET)
        if MEMBER == "counts":
            w *= member
        if NEEDS_GRAD:
            w0, w1, w2 = split(w, W_TERMS, INTERPRET)
            tile_grad = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
            grad += product(tile_grad, w0, w1, w2, m0, m1, m2, W_TERMS, M_TERMS, W_TERMS, INTERPRET)

    out = (part * tl.num_programs(2) + s).to(tl.int64) * batch + b
    if own_d == 0:
        tl.store(loss_ptr + out, softplus_sum(loss, factors), mask=b_ok)
    if NEEDS_GRAD:
        d = own_d + tl.arange(0, BLOCK_D)
        tl.store(grad_ptr + out[:, None] * D + d[None, :], grad, mask=b_ok[:, None] & (d < D)[None, :])


@triton.jit(do_not_specialize=SIZES)
def mean_fwd_kernel(
    bank0_ptr, bank1_ptr, bank_stride,
    index_ptr, member_ptr, member_stride, label_ptr, class_start_ptr,
    grad_ptr,  # fp32 [splits, S, B, D]
    batch, num_data, first_row, num_rows, split_rows, k,
    D: tl.constexpr, BLOCK_D: tl.constexpr, STRIDE_UNIT: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr,
    MEMBER: tl.constexpr, CHARGE: tl.constexpr,
    M_TERMS: tl.constexpr, W_TERMS: tl.constexpr, LIMIT: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """Share of the rows [n_lo, n_lo + split_rows) in the mean negative row: one product with the membership itself.

    No scores: the mean score is the anchor's product with the mean row, which `mean_finish_kernel` takes. Grid as for
    the loss with gradient.
    """
    s, part = tl.program_id(2), tl.program_id(1)
    bank_stride = multiple_of(bank_stride, STRIDE_UNIT)
    D_BLOCKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    own_d = tl.program_id(0) % D_BLOCKS * BLOCK_D
    b = tl.program_id(0) // D_BLOCKS * BLOCK_B + tl.arange(0, BLOCK_B)
    b_ok = b < batch
    bank_ptr = bank0_ptr
    if s == 1:
        bank_ptr = bank1_ptr
    index = own_rows(index_ptr, b, b_ok, num_data)
    label = class_of(label_ptr, index, b_ok, MEMBER)
    own, label_ptr = index - first_row, label_ptr + first_row  # rows are numbered as in the banks from here on
    k_b, weight = charge(index, label, b_ok, num_data, k, class_start_ptr, MEMBER, CHARGE)
    each = (weight / k_b)[:, None]
    grad = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
    n_lo = part * split_rows
    for n0 in range(n_lo, tl.minimum(n_lo + split_rows, num_rows), BLOCK_N):
        member = member_tile(
            member_ptr, member_stride, b, b_ok, n0, num_rows, own, label, label_ptr, MEMBER, BLOCK_N, INTERPRET
        )
        tile = load_tile(bank_ptr, n0, num_rows, bank_stride, own_d, D, BLOCK_D, BLOCK_N)
        m0, m1, m2 = split(tile, M_TERMS, INTERPRET)
        times = member.to(tl.float32)
        if MEMBER == "mask":
            times = -times
        w0, w1, w2 = split(times, W_TERMS, INTERPRET)
        tile_grad = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
        grad += each * product(tile_grad, w0, w1, w2, m0, m1, m2, W_TERMS, M_TERMS, LIMIT, INTERPRET)
    out = (part * tl.num_programs(2) + s).to(tl.int64) * batch + b
    d = own_d + tl.arange(0, BLOCK_D)
    tl.store(grad_ptr + out[:, None] * D + d[None, :], grad, mask=b_ok[:, None] & (d < D)[None, :])


@triton.jit(do_not_specialize=SIZES)
def log_z_fwd_kernel(
    terms_ptr, bank0_ptr, bank1_ptr, bank_stride,
    index_ptr, member_ptr, member_stride, label_ptr,
    log_z_ptr,  # fp32 [S], read with ONLY_UNSET
    top_ptr, sum_ptr,  # fp32 [splits, S, B]: running maximum (base 2), and the sum relative to it
    batch, num_data, first_row, num_rows, split_rows, temperature,
    D: tl.constexpr, BLOCK_D: tl.constexpr, STRIDE_UNIT: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr,
    MEMBER: tl.constexpr, ONLY_UNSET: tl.constexpr,
    X_TERMS: tl.constexpr, M_TERMS: tl.constexpr, LIMIT: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """Online log-sum-exp of s / tau over the negatives in rows [n_lo, n_lo + split_rows).

    Grid (blocks of anchors, splits, S). With ONLY_UNSET a direction whose log Z is set (not NaN) is not walked.
    """
    s, part = tl.program_id(2), tl.program_id(1)
    bank_stride = multiple_of(bank_stride, STRIDE_UNIT)
    b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    b_ok = b < batch
    bank_ptr = bank0_ptr
    if s == 1:
        bank_ptr = bank1_ptr
    x0, x1, x2 = load_terms(terms_ptr, s, b, b_ok, batch, 0, D, BLOCK_D, X_TERMS)
    index = own_rows(index_ptr, b, b_ok, num_data)
    label = class_of(label_ptr, index, b_ok, MEMBER)
    own, label_ptr = index - first_row, label_ptr + first_row  # rows are numbered as in the banks from here on
    scale = LOG2E / temperature
    top = tl.full([BLOCK_B], -1e38, tl.float32)  # finite, so that a tile without members gives 0, not NaN
    total = tl.zeros([BLOCK_B], tl.float32)
    n_lo = part * split_rows
    n_hi = tl.minimum(n_lo + split_rows, num_rows)
    if ONLY_UNSET:
        log_z = tl.load(log_z_ptr + s)
        n_hi = tl.where(log_z == log_z, n_lo, n_hi)
    for n0 in range(n_lo, n_hi, BLOCK_N):
        member = member_tile(
            member_ptr, member_stride, b, b_ok, n0, num_rows, own, label, label_ptr, MEMBER, BLOCK_N, INTERPRET
        )
        score, _, _, _ = score_tile(
            terms_ptr, x0, x1, x2, s, b, b_ok, batch, bank_ptr, n0, num_rows, bank_stride, 0,
            D, BLOCK_D, BLOCK_N, X_TERMS, M_TERMS, LIMIT, INTERPRET,
        )  # fmt: skip
        v = where_member(score * scale, -1e38, member, MEMBER)
        higher = tl.maximum(top, tl.max(v, 1))
        e = where_member(exp2(v - higher[:, None], INTERPRET), 0.0, member, MEMBER)
        if MEMBER == "counts":
            e *= member
        total = total * tl.exp2(top - higher) + tl.sum(e, 1)
        top = higher
    out = (part * tl.num_programs(2) + s).to(tl.int64) * batch + b
    tl.store(top_ptr + out, top, mask=b_ok)
    tl.store(sum_ptr + out, total, mask=b_ok)
