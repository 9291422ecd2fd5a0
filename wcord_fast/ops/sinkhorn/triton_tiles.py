"""Tiles of the cost for the streaming kernels of triton_kernels.py: made from features, or read if it is given.

A cost is recomputed to the same bits in every kernel and from both sides (the partial products are added in the order
of x and y, not of rows and columns): potentials that one rounding of C made right would not be right for another, by
a factor exp(s * 1 ulp), and the mass of P would drift from 1.
"""

from __future__ import annotations

import triton
import triton.language as tl

UNIT = tl.constexpr(2.0**12)  # the factor of split numbers, whose magnitude is at most 1


@triton.jit
def cost_tile(
    x,  # rows of this problem; of a distance from this block on
    y,  # columns of this problem; of a distance from this tile on
    x_hi,  # as in product_tile
    x_lo,
    row,  # [BLOCK_M], clamped
    col,  # [BLOCK_N], clamped
    x_stride,
    y_stride,
    n,
    m,
    COST: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
):
    """C_ij of the rows and columns of a tile, fp32 [BLOCK_M, BLOCK_N]."""
    if COST == "cosine":
        cost = 1.0 - product_tile(
            x, y, x_hi, x_lo, row.to(tl.int64), col.to(tl.int64), D, BLOCK_M, BLOCK_N, BLOCK_K, SPLIT, ROWS
        )
    elif COST == "sqeuclidean" or COST == "euclidean":
        cost = distance_tile(x, y, x_stride, y_stride, D, BLOCK_M, BLOCK_N, COST == "euclidean")
    else:
        cost = given_tile(x, row.to(tl.int64), col.to(tl.int64), n, m, ROWS)
    return cost


@triton.jit
def product_tile(
    x,  # [n, D] or [n, 2 D] fp16 of this problem
    y,  # [m, D] or [m, 2 D]
    x_hi,  # [BLOCK_M, D] and
    x_lo,  # [BLOCK_M, D], read only if D == BLOCK_K
    rows,  # int64 [BLOCK_M]
    cols,  # int64 [BLOCK_N]
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
):
    """<x_i, y_j> of unit rows, fp32 [BLOCK_M, BLOCK_N].

    Small products are added first, and chunks of a long D outside the tensor cores: those truncate each partial sum,
    which over D = 2048 would add up to 40 ulp. (The scaling also keeps the compiler from fusing the sum back.)
    """
    WIDTH: tl.constexpr = 2 * D if SPLIT else D
    k = tl.arange(0, BLOCK_K)
    y_at = y + cols[:, None] * WIDTH + k[None, :]
    if D == BLOCK_K:
        product = split_dot(x_hi, x_lo, y_at, D, SPLIT, ROWS)
    else:
        x_at = x + rows[:, None] * WIDTH + k[None, :]
        product = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for _ in range(0, D, BLOCK_K):
            chunk_hi = tl.load(x_at)
            chunk_lo = tl.load(x_at + D) if SPLIT else chunk_hi
            product += split_dot(chunk_hi, chunk_lo, y_at, D, SPLIT, ROWS)
            x_at += BLOCK_K
            y_at += BLOCK_K
    return product


@triton.jit
def split_dot(x_hi, x_lo, y_at, D: tl.constexpr, SPLIT: tl.constexpr, ROWS: tl.constexpr):
    """x [BLOCK_M, BLOCK_K] times the transpose of y [BLOCK_N, BLOCK_K], loaded from `y_at`, less the scaling."""
    y_hi = tl.trans(tl.load(y_at))
    if SPLIT:
        y_lo = tl.trans(tl.load(y_at + D))
        product = tl.dot(x_hi, y_lo, tl.dot(x_lo, y_hi)) if ROWS else tl.dot(x_lo, y_hi, tl.dot(x_hi, y_lo))
        product = tl.dot(x_hi, y_hi, product)
    else:
        product = tl.dot(x_hi, y_hi)
    return product * (1 / (UNIT * UNIT))


@triton.jit
def distance_tile(
    x,  # at this block and coordinate 0 of [D, x_stride], fp32
    y,  # at this tile and coordinate 0 of [D, y_stride]
    x_stride,
    y_stride,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROOT: tl.constexpr,
):
    """|x_i - y_j|^2 from differences, [BLOCK_M, BLOCK_N]; with ROOT |x_i - y_j|."""
    rows = tl.arange(0, BLOCK_M)[:, None]  # constants of a thread: they become the loads' immediate offsets
    cols = tl.arange(0, BLOCK_N)[None, :]
    squares = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for _ in range(D):
        difference = tl.load(x + rows) - tl.load(y + cols)
        squares += difference * difference
        x += x_stride
        y += y_stride
    return tl.sqrt_rn(squares) if ROOT else squares


@triton.jit
def given_tile(costs, rows, cols, n, m, ROWS: tl.constexpr):
    """C_ij of a matrix [n, m], or C_ji of [m, n] without ROWS; rows int64 [BLOCK_M], cols int64 [BLOCK_N]."""
    at = rows[:, None] * m + cols[None, :] if ROWS else cols[None, :] * n + rows[:, None]
    return tl.load(costs + at)


@triton.jit
def add_differences(
    out,  # addresses [BLOCK_M] of the rows' coordinate 0 in fp32 [.., D]
    inside,  # bool [BLOCK_M]: rows that exist
    weight,  # fp32 [BLOCK_M, BLOCK_N]
    x,  # as in distance_tile
    y,
    x_stride,
    y_stride,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Adds sum_j weight_ij (x_i - y_j) to `out`. One program owns it, whose adds keep their order: bits repeat."""
    rows = tl.arange(0, BLOCK_M)[:, None]
    cols = tl.arange(0, BLOCK_N)[None, :]
    for _ in range(D):
        difference = tl.load(x + rows) - tl.load(y + cols)
        tl.atomic_add(out, tl.sum(weight * difference, 1), mask=inside, sem="relaxed")
        x += x_stride
        y += y_stride
        out += 1
