"""InfoNCE and the sigmoid loss of the negatives of a bank: the pass over the rows, as in triton_kernels.py.

One program owns BLOCK_B anchors, one direction and one range of rows. InfoNCE's gradient is made in the pass that finds
the maximum: where a tile raises it, the sums so far shrink. critics.py adds the positives' terms.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_terms import LOG2E, add_softplus, exp2, exp2_of_minus, no_softplus, reciprocal, softplus_sum
from .triton_tiles import (
    SIZES,
    charge,
    class_of,
    load_terms,
    member_tile,
    multiple_of,
    own_rows,
    product,
    score_tile,
    split,
    where_member,
)


@triton.jit(do_not_specialize=SIZES)
def critic_fwd_kernel(
    terms_ptr, bank0_ptr, bank1_ptr, bank_stride,
    index_ptr, member_ptr, member_stride, label_ptr, class_start_ptr,
    scale_ptr, bias_ptr,  # fp32 [1]
    value_ptr, slope_ptr,  # fp32 [splits, S, B]: sums of softplus(u) (base 2), sigmoid(u); InfoNCE: top (base 2), sum
    grad_ptr,  # fp32 [splits, S, B, D]: sums of sigmoid(u), or of exp2(u - top), times the row
    batch, num_data, first_row, num_rows, split_rows, k,
    D: tl.constexpr, BLOCK_D: tl.constexpr, STRIDE_UNIT: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr,
    MEMBER: tl.constexpr, CHARGE: tl.constexpr, NEEDS_GRAD: tl.constexpr, SOFTMAX: tl.constexpr,
    X_TERMS: tl.constexpr, M_TERMS: tl.constexpr, W_TERMS: tl.constexpr, LIMIT: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """Sums over the negatives in rows [n_lo, n_lo + split_rows), with u = scale * score + bias.

    Grid (blocks of anchors times blocks of columns, splits, S); without gradient one block of columns.
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
    _, weight = charge(index, label, b_ok, num_data, k, class_start_ptr, MEMBER, CHARGE)
    scale, bias = tl.load(scale_ptr) * LOG2E, tl.load(bias_ptr) * LOG2E
    value = tl.full([BLOCK_B], -1e38, tl.float32)  # finite, so that a tile without members gives 0, not NaN
    total, lost, factors = no_softplus(BLOCK_B, MEMBER)
    slope = tl.zeros([BLOCK_B], tl.float32)
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
        u = where_member(score * scale + bias, -1e38, member, MEMBER)  # in base 2
        if SOFTMAX:
            higher = tl.maximum(value, tl.max(u, 1))
            w = where_member(exp2(u - higher[:, None], INTERPRET), 0.0, member, MEMBER)
            shrink = tl.exp2(value - higher)
            value = higher
            slope *= shrink
            grad *= shrink[:, None]
        else:
            t = exp2_of_minus(u, INTERPRET)
            r = reciprocal(1.0 + t, INTERPRET)
            w = tl.where(u >= 0, r, t * r)
            total, lost, factors = add_softplus(total, lost, factors, u, t, member, MEMBER, INTERPRET)
        if MEMBER == "counts":
            w *= member
        slope += tl.sum(w, 1)
        if NEEDS_GRAD:
            w0, w1, w2 = split(w, W_TERMS, INTERPRET)
            tile = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
            grad += product(tile, w0, w1, w2, m0, m1, m2, W_TERMS, M_TERMS, W_TERMS, INTERPRET)

    if not SOFTMAX:
        value = softplus_sum(total, factors) * weight
    out = (part * tl.num_programs(2) + s).to(tl.int64) * batch + b
    if own_d == 0:
        tl.store(value_ptr + out, value, mask=b_ok)
        tl.store(slope_ptr + out, slope * weight, mask=b_ok)
    if NEEDS_GRAD:
        d = own_d + tl.arange(0, BLOCK_D)
        ok = b_ok[:, None] & (d < D)[None, :]
        tl.store(grad_ptr + out[:, None] * D + d[None, :], grad * weight[:, None], mask=ok)
