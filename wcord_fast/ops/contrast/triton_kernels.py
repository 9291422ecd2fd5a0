"""The Triton kernels that score anchors against the rows of a batch or of a queue (README.md beside this file).

A program owns BLOCK_B anchors and one range of rows, which it walks in tiles of BLOCK_N: the scores of a tile are made,
used and forgotten on chip. Partial results go to scratch [splits, A(, D)]. No atomics: equal inputs on one device give
equal bits. Both directions of a batch are two launches with the sides swapped. Products, and rows longer than BLOCK_D,
are as in ops/bank/triton_kernels.py; the rows' numbers are int32, offsets int64.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..bank.triton_terms import LOG2E, add_softplus, exp2, exp2_of_minus, no_softplus, reciprocal, softplus_sum
from ..bank.triton_tiles import SIZES, load_terms, multiple_of, product, score_tile, split


@triton.jit
def _negatives(
    b, n, n_ok, label, index, row_label_ptr, row_index_ptr, first_row,
    HAS_FIRST: tl.constexpr, HAS_LABEL: tl.constexpr, HAS_INDEX: tl.constexpr,
):  # fmt: skip
    """Whether row n is a negative of anchor b: bool [BLOCK_B, BLOCK_N].

    It is not if it is the anchor's positive (HAS_FIRST), or has its class (not below 0) or its index.
    """
    other = n_ok[None, :] & (b >= 0)[:, None]
    if HAS_FIRST:
        other = other & (n[None, :] != (b + first_row)[:, None])
    if HAS_LABEL:
        row_label = tl.load(row_label_ptr + n, mask=n_ok, other=-1)
        row_label = tl.where(row_label < 0, -2, row_label)  # an unknown class is equal to none: anchors have -1 for it
        other = other & (row_label[None, :] != label[:, None])
    if HAS_INDEX:
        row_index = tl.load(row_index_ptr + n, mask=n_ok, other=0)
        other = other & (row_index[None, :] != index[:, None])
    return other


@triton.jit
def _ids_of(label_ptr, index_ptr, b, b_ok, HAS_LABEL: tl.constexpr, HAS_INDEX: tl.constexpr):
    """Classes (-1: unknown) and indices of the anchors; the anchors' numbers where they do not matter."""
    label, index = b, b
    if HAS_LABEL:
        label = tl.load(label_ptr + b, mask=b_ok, other=-1)
        label = tl.where(label < 0, -1, label)
    if HAS_INDEX:
        index = tl.load(index_ptr + b, mask=b_ok, other=0)
    return label, index


@triton.jit(do_not_specialize=SIZES)
def values_fwd_kernel(
    terms_ptr,  # bf16 [X_TERMS, A, D]: the anchors
    rows_ptr, row_stride,  # [R, D], row_stride apart
    label_ptr, row_label_ptr, index_ptr, row_index_ptr,  # int64 [A], [R], [A], [R]
    scale_ptr, bias_ptr,  # fp32 [1]
    top_ptr, sum_ptr,  # fp32 [splits, A], in base 2; InfoNCE: maximum, and the sum relative to it; sigmoid: the sum
    batch, first_row, num_rows, split_rows,
    D: tl.constexpr, BLOCK_D: tl.constexpr, STRIDE_UNIT: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr,
    SOFTMAX: tl.constexpr, HAS_FIRST: tl.constexpr, HAS_LABEL: tl.constexpr, HAS_INDEX: tl.constexpr,
    X_TERMS: tl.constexpr, M_TERMS: tl.constexpr, LIMIT: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp, or sum of softplus, of the scores of the negatives in rows [n_lo, n_lo + split_rows).

    Grid (blocks of anchors, splits, 1).
    """
    part = tl.program_id(1)
    row_stride = multiple_of(row_stride, STRIDE_UNIT)
    b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    b_ok = b < batch
    s = tl.program_id(2)
    x0, x1, x2 = load_terms(terms_ptr, s, b, b_ok, batch, 0, D, BLOCK_D, X_TERMS)
    label, index = _ids_of(label_ptr, index_ptr, b, b_ok, HAS_LABEL, HAS_INDEX)
    scale, bias = tl.load(scale_ptr) * LOG2E, tl.load(bias_ptr) * LOG2E
    top = tl.full([BLOCK_B], -1e38, tl.float32)  # finite, so that a tile without negatives gives 0, not NaN
    total = tl.zeros([BLOCK_B], tl.float32)
    softplus, lost, factors = no_softplus(BLOCK_B, "mask")
    n_lo = part * split_rows
    for n0 in range(n_lo, tl.minimum(n_lo + split_rows, num_rows), BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        n_ok = n < num_rows
        score, _, _, _ = score_tile(
            terms_ptr, x0, x1, x2, s, b, b_ok, batch, rows_ptr, n0, num_rows, row_stride, 0,
            D, BLOCK_D, BLOCK_N, X_TERMS, M_TERMS, LIMIT, INTERPRET,
        )  # fmt: skip
        u = score * scale + bias  # in base 2
        other = _negatives(
            b, n, n_ok, label, index, row_label_ptr, row_index_ptr, first_row, HAS_FIRST, HAS_LABEL, HAS_INDEX
        )
        if SOFTMAX:
            v = tl.where(other, u, -1e38)
            higher = tl.maximum(top, tl.max(v, 1))
            e = tl.where(other, exp2(v - higher[:, None], INTERPRET), 0.0)
            total = total * tl.exp2(top - higher) + tl.sum(e, 1)
            top = higher
        else:
            u = tl.where(other, u, -1e30)
            t = exp2_of_minus(u, INTERPRET)
            softplus, lost, factors = add_softplus(softplus, lost, factors, u, t, other, "mask", INTERPRET)
    if not SOFTMAX:
        total = softplus_sum(softplus, factors)
    out = part.to(tl.int64) * batch + b
    tl.store(sum_ptr + out, total, mask=b_ok)
    if SOFTMAX:
        tl.store(top_ptr + out, top, mask=b_ok)


@triton.jit(do_not_specialize=SIZES)
def gradients_fwd_kernel(
    terms_ptr, rows_ptr, row_stride, label_ptr, row_label_ptr, index_ptr, row_index_ptr, scale_ptr, bias_ptr,
    weight_ptr, row_weight_ptr,  # fp32 [A], [R]: weights of the anchors' losses, and of the rows' own
    total_ptr, row_total_ptr,  # fp32 [A], [R]: log-sum-exps of all of an anchor's, a row's scores; with SOFTMAX
    grad_ptr, slope_ptr,  # fp32 [splits, A, D], [splits, A]
    batch, first_row, num_rows, split_rows,
    D: tl.constexpr, BLOCK_D: tl.constexpr, STRIDE_UNIT: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr,
    SOFTMAX: tl.constexpr, HAS_FIRST: tl.constexpr, HAS_LABEL: tl.constexpr, HAS_INDEX: tl.constexpr,
    HAS_ROW_WEIGHT: tl.constexpr,
    X_TERMS: tl.constexpr, M_TERMS: tl.constexpr, W_TERMS: tl.constexpr, LIMIT: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """Sums of dL/du_ij times row j, and of dL/du_ij, over the negatives in rows [n_lo, n_lo + split_rows).

    Grid (blocks of anchors times blocks of columns, splits, 1). InfoNCE: dL/du_ij = g_i exp(u_ij - L_i) + h_j exp(u_ij
    - M_j), where no exponent of a negative is above 0; sigmoid: (g_i + h_j) sigmoid(u_ij).
    """
    part = tl.program_id(1)
    row_stride = multiple_of(row_stride, STRIDE_UNIT)
    D_BLOCKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    own_d = tl.program_id(0) % D_BLOCKS * BLOCK_D
    b = tl.program_id(0) // D_BLOCKS * BLOCK_B + tl.arange(0, BLOCK_B)
    b_ok = b < batch
    s = tl.program_id(2)
    x0, x1, x2 = load_terms(terms_ptr, s, b, b_ok, batch, 0, D, BLOCK_D, X_TERMS)
    label, index = _ids_of(label_ptr, index_ptr, b, b_ok, HAS_LABEL, HAS_INDEX)
    scale, bias = tl.load(scale_ptr) * LOG2E, tl.load(bias_ptr) * LOG2E
    weight = tl.load(weight_ptr + b, mask=b_ok, other=0.0)
    total = weight
    if SOFTMAX:
        total = tl.load(total_ptr + b, mask=b_ok, other=0.0) * LOG2E
    grad = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
    slope = tl.zeros([BLOCK_B], tl.float32)
    n_lo = part * split_rows
    for n0 in range(n_lo, tl.minimum(n_lo + split_rows, num_rows), BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        n_ok = n < num_rows
        score, m0, m1, m2 = score_tile(
            terms_ptr, x0, x1, x2, s, b, b_ok, batch, rows_ptr, n0, num_rows, row_stride, own_d,
            D, BLOCK_D, BLOCK_N, X_TERMS, M_TERMS, LIMIT, INTERPRET,
        )  # fmt: skip
        u = score * scale + bias  # in base 2
        other = _negatives(
            b, n, n_ok, label, index, row_label_ptr, row_index_ptr, first_row, HAS_FIRST, HAS_LABEL, HAS_INDEX
        )
        if SOFTMAX:
            w = weight[:, None] * exp2(u - total[:, None], INTERPRET)
            if HAS_ROW_WEIGHT:
                row_total = tl.load(row_total_ptr + n, mask=n_ok, other=0.0) * LOG2E
                w += tl.load(row_weight_ptr + n, mask=n_ok, other=0.0)[None, :] * exp2(
                    u - row_total[None, :], INTERPRET
                )
        else:
            t = exp2_of_minus(u, INTERPRET)
            r = reciprocal(1.0 + t, INTERPRET)
            both = weight[:, None]
            if HAS_ROW_WEIGHT:
                both = both + tl.load(row_weight_ptr + n, mask=n_ok, other=0.0)[None, :]
            w = tl.where(u >= 0, r, t * r) * both
        w = tl.where(other, w, 0.0)
        slope += tl.sum(w, 1)
        w0, w1, w2 = split(w, W_TERMS, INTERPRET)
        tile = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
        grad += product(tile, w0, w1, w2, m0, m1, m2, W_TERMS, M_TERMS, W_TERMS, INTERPRET)
    out = part.to(tl.int64) * batch + b
    if own_d == 0:
        tl.store(slope_ptr + out, slope, mask=b_ok)
    d = own_d + tl.arange(0, BLOCK_D)
    tl.store(grad_ptr + out[:, None] * D + d[None, :], grad, mask=b_ok[:, None] & (d < D)[None, :])
