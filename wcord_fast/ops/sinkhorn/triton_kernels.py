"""Streaming Sinkhorn in Triton: three kernels that make tiles of the cost from features, or read them if it is given.

    sweep    partial log-sum-exps of h_j - s C_ij over a strip of columns, online, for a block of rows
    combine  the log-sum-exp from the partials in strip order, and the potential that follows
    finish   row sums of P, sum_j P_ij C_ij and sum_j P_ij v_j for a block of rows, from the final potentials

"Rows" is the side whose results a launch makes and "columns" the other: the column step is the row step with x and y
swapped. A program owns one block of rows and one strip of columns of one problem. Several strips serve to fill the
device when there are few rows. Partials are added in strip order, so results do not depend on scheduling. Blocks are
the fastest index of the grid: programs that run together read the same columns, from L2.

Layouts. Cosine: unit rows times 2^12, split into two fp16 numbers, hi = fp16(v) and lo = fp16(v - hi): [G, n, D] of
hi, then of lo, side by side in a row of 2 D (hi alone without SPLIT), D zero-padded to a multiple of BLOCK_K. fp16 has
the 11-bit mantissa of TF32 at twice its rate and half its bytes, and unit rows need no more range, so
hi hi + hi lo + lo hi is 3xTF32 for less. Squared distances: fp32 features [G, D, n], so that one coordinate of a block
is one coalesced load; a distance is the root of one. A given cost: fp32 [G, n, m], or [n, m] for all problems, which
both sides read. Indices past the end are clamped, not masked: such rows are not stored, such columns have potential
-inf.

Per sweep and problem of features: 6 n m D fp16 tensor-core flops (2 without SPLIT) or 2 n m D fp32 instructions
(squared distances), n m exponentials, and 4 n m D / BLOCK_M bytes from L2 (2 without SPLIT) while D <= BLOCK_K, when
the block's rows stay on chip; 4 n m D (1 / BLOCK_M + 1 / BLOCK_N) otherwise. Of a given cost: 4 n m bytes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_tiles import UNIT, add_differences, cost_tile

NEVER = tl.constexpr(float("-inf"))
PADDING = tl.constexpr(128)  # rows of [G, D, n] are padded to a multiple of this: no tile reaches past them


@triton.jit(do_not_specialize=["n", "m", "num_strips", "tiles"])
def sweep_kernel(
    x,  # rows in the layouts above
    y,  # columns
    h,  # [G, m] potentials of the columns; -inf leaves a column out
    active,  # int32 [G]: 0 for a problem that has stopped
    top,  # [G, S, n] out: the strip's largest h_j - s C_ij
    total,  # [G, S, n] out: sum_j exp(h_j - s C_ij - top)
    row_ids,  # int32 [G, n] and
    col_ids,  # [G, m]: cells of equal numbers are known pairs; read only if PAIRED
    kappa,  # [G], what PAIRED adds to the exponents of pairs
    s,
    n,
    m,
    num_strips,  # S
    tiles,  # column tiles per strip
    COST: tl.constexpr,  # "cosine", "sqeuclidean", "euclidean", "given" (x, a matrix per problem), "shared" (x, one)
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,  # which of the two sides the rows are
    PAIRED: tl.constexpr,
):
    blocks = tl.cdiv(n, BLOCK_M)
    part = (tl.program_id(0) // blocks).to(tl.int64)  # g * S + strip
    g = part // num_strips
    if tl.load(active + g) == 0:
        return
    block = tl.program_id(0) % blocks
    DISTANCE: tl.constexpr = COST == "sqeuclidean" or COST == "euclidean"
    WIDTH: tl.constexpr = 2 * D if COST == "cosine" and SPLIT else D
    x_stride = tl.cdiv(n, PADDING) * PADDING
    y_stride = tl.cdiv(m, PADDING) * PADDING
    if COST == "cosine":
        x += g * n * WIDTH
        y += g * m * WIDTH
    elif COST == "given":
        x += g * n * m
    elif DISTANCE:
        x += g * D * x_stride + block * BLOCK_M
        y += g * D * y_stride
    h += g * m
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    row = tl.minimum(rows, n - 1)
    x_hi = row  # replaced where product_tile reads it
    x_lo = row
    if COST == "cosine" and D == BLOCK_K:
        x_at = x + row.to(tl.int64)[:, None] * WIDTH + tl.arange(0, D)[None, :]
        x_hi = tl.load(x_at)
        if SPLIT:
            x_lo = tl.load(x_at + D)

    bonus = tl.load(kappa + g) if PAIRED else 0.0

    largest = tl.full([BLOCK_M], NEVER, tl.float32)
    summed = tl.zeros([BLOCK_M], tl.float32)
    first = (part % num_strips).to(tl.int32) * tiles
    for tile in range(first, tl.minimum(first + tiles, tl.cdiv(m, BLOCK_N))):
        cols = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        col = tl.minimum(cols, m - 1)
        y_tile = y + tile * BLOCK_N if DISTANCE else y
        cost = cost_tile(
            x, y_tile, x_hi, x_lo, row, col, x_stride, y_stride, n, m,
            COST, D, BLOCK_M, BLOCK_N, BLOCK_K, SPLIT, ROWS,
        )  # fmt: skip
        z = tl.load(h + cols, mask=cols < m, other=NEVER)[None, :] - s * cost
        if PAIRED:
            pair = tl.load(row_ids + g * n + row)[:, None] == tl.load(col_ids + g * m + col)[None, :]
            z += tl.where(pair, bonus, 0.0)
        higher = tl.maximum(largest, tl.max(z, 1))
        shift = tl.where(higher == NEVER, 0.0, higher)  # no column so far: -inf - -inf is NaN
        summed = summed * tl.exp(largest - shift) + tl.sum(tl.exp(z - shift[:, None]), 1)
        largest = higher
    tl.store(top + part * n + rows, largest, mask=rows < n)
    tl.store(total + part * n + rows, summed, mask=rows < n)


@triton.jit(do_not_specialize=["n", "num_strips"])
def combine_kernel(
    top,  # [G, S, n]
    total,  # [G, S, n]
    log_mass,  # [G, n], -inf at zero mass; not read if PLAIN
    active,  # int32 [G]
    potential,  # [G, n] out: log_mass - damp LSE, or LSE itself if PLAIN
    ahead,  # [G, n] out, only if EXTRAPOLATE: twice the new potential less the one before
    damp,  # 1 for a marginal that is met
    n,
    num_strips,  # S
    EXTRAPOLATE: tl.constexpr,
    PLAIN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    blocks = tl.cdiv(n, BLOCK)
    g = (tl.program_id(0) // blocks).to(tl.int64)
    if tl.load(active + g) == 0:
        return
    rows = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = rows < n
    largest = tl.full([BLOCK], NEVER, tl.float32)
    summed = tl.zeros([BLOCK], tl.float32)
    for strip in range(num_strips):
        at = (g * num_strips + strip) * n + rows
        strip_top = tl.load(top + at, mask=inside, other=0.0)
        strip_sum = tl.load(total + at, mask=inside, other=1.0)
        higher = tl.maximum(largest, strip_top)
        shift = tl.where(higher == NEVER, 0.0, higher)
        summed = summed * tl.exp(largest - shift) + strip_sum * tl.exp(strip_top - shift)
        largest = higher
    new = largest + tl.log(summed)
    at = g * n + rows
    if not PLAIN:
        mass = tl.load(log_mass + at, mask=inside, other=NEVER)
        new = tl.where(mass == NEVER, NEVER, mass - damp * new)
        if EXTRAPOLATE:
            old = tl.load(potential + at, mask=inside, other=0.0)
            tl.store(ahead + at, tl.where(mass == NEVER, NEVER, 2 * new - old), mask=inside)
    tl.store(potential + at, new, mask=inside)


@triton.jit(do_not_specialize=["n", "m", "num_strips", "tiles"])
def finish_kernel(
    x,  # rows in the layouts above
    y,  # columns
    v,  # [G, m, D_OUT] or [G, m, 2 D_OUT] fp16, split as unit rows are; read only if GRADIENT, and not if Euclidean
    alpha,  # [G, n] potentials of the rows
    beta,  # [G, m] potentials of the columns
    scale,  # [G]
    mass,  # [G, S, n] out: sum_j P_ij
    moved,  # [G, S, n] out: sum_j P_ij C_ij
    pulled,  # [G, S, n, D_OUT] out, only if GRADIENT: sum_j P_ij v_j; Euclidean (zeros in): P_ij (x_i - y_j) / C_ij
    row_ids,  # as in sweep_kernel
    col_ids,
    kappa,
    n,
    m,
    num_strips,  # S
    tiles,  # column tiles per strip
    GRADIENT: tl.constexpr,
    COST: tl.constexpr,  # "cosine", "sqeuclidean", "euclidean", "given" (x, a matrix per problem), "shared" (x, one)
    D: tl.constexpr,
    D_OUT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_OUT: tl.constexpr,  # coordinates of `pulled` per program; divides D_OUT
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,  # which of the two sides the rows are
    PAIRED: tl.constexpr,
):
    """P is kept relative to the row's largest entry so far, like attention's softmax, for the sake of fp16."""
    blocks = tl.cdiv(n, BLOCK_M)
    CHUNKS: tl.constexpr = D_OUT // BLOCK_OUT if GRADIENT else 1
    PRODUCT: tl.constexpr = GRADIENT and COST != "euclidean"
    chunk = tl.program_id(0) // blocks % CHUNKS
    part = (tl.program_id(0) // (blocks * CHUNKS)).to(tl.int64)  # g * S + strip
    g = part // num_strips
    block = tl.program_id(0) % blocks
    DISTANCE: tl.constexpr = COST == "sqeuclidean" or COST == "euclidean"
    WIDTH: tl.constexpr = 2 * D if COST == "cosine" and SPLIT else D
    WIDTH_OUT: tl.constexpr = 2 * D_OUT if SPLIT else D_OUT
    x_stride = tl.cdiv(n, PADDING) * PADDING
    y_stride = tl.cdiv(m, PADDING) * PADDING
    if COST == "cosine":
        x += g * n * WIDTH
        y += g * m * WIDTH
    elif COST == "given":
        x += g * n * m
    elif DISTANCE:
        x += g * D * x_stride + block * BLOCK_M
        y += g * D * y_stride
    v += g * m * WIDTH_OUT
    beta += g * m
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    row = tl.minimum(rows, n - 1)
    x_hi = row
    x_lo = row
    if COST == "cosine" and D == BLOCK_K:
        x_at = x + row.to(tl.int64)[:, None] * WIDTH + tl.arange(0, D)[None, :]
        x_hi = tl.load(x_at)
        if SPLIT:
            x_lo = tl.load(x_at + D)
    s = tl.load(scale + g)
    row_alpha = tl.load(alpha + g * n + rows, mask=rows < n, other=NEVER)
    bonus = tl.load(kappa + g) if PAIRED else 0.0

    largest = tl.full([BLOCK_M], NEVER, tl.float32)
    row_mass = tl.zeros([BLOCK_M], tl.float32)
    row_moved = tl.zeros([BLOCK_M], tl.float32)
    if PRODUCT:
        out = chunk * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
        pull = tl.zeros([BLOCK_M, BLOCK_OUT], tl.float32)
    first = (part % num_strips).to(tl.int32) * tiles
    for tile in range(first, tl.minimum(first + tiles, tl.cdiv(m, BLOCK_N))):
        cols = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        col = tl.minimum(cols, m - 1)
        y_tile = y + tile * BLOCK_N if DISTANCE else y
        cost = cost_tile(
            x, y_tile, x_hi, x_lo, row, col, x_stride, y_stride, n, m,
            COST, D, BLOCK_M, BLOCK_N, BLOCK_K, SPLIT, ROWS,
        )  # fmt: skip
        col_beta = tl.load(beta + cols, mask=cols < m, other=NEVER)
        # Rounded as in the last column step, which made the column sums.
        z = (row_alpha[:, None] if ROWS else col_beta[None, :]) - s * cost
        if PAIRED:
            pair = tl.load(row_ids + g * n + row)[:, None] == tl.load(col_ids + g * m + col)[None, :]
            z += tl.where(pair, bonus, 0.0)
        z += col_beta[None, :] if ROWS else row_alpha[:, None]
        higher = tl.maximum(largest, tl.max(z, 1))
        shift = tl.where(higher == NEVER, 0.0, higher)
        fade = tl.exp(largest - shift)
        p = tl.exp(z - shift[:, None])
        row_mass = row_mass * fade + tl.sum(p, 1)
        # A product that is merged into the first addition across lanes is another one in each, and all of them store
        # the sum. That of a Euclidean cost is not merged, and an instruction of its own would spill.
        moves = p * cost if COST == "euclidean" else tl.fma(p, cost, 0.0)
        row_moved = row_moved * fade + tl.sum(moves, 1)
        largest = higher
        if GRADIENT and COST == "euclidean":
            weight = tl.where(cost > 0, tl.exp(z) / cost, 0.0)  # 0 where two points coincide
            to = pulled + (part * n + rows) * D_OUT
            add_differences(to, rows < n, weight, x, y_tile, x_stride, y_stride, D, BLOCK_M, BLOCK_N)
        if PRODUCT:
            v_at = v + col.to(tl.int64)[:, None] * WIDTH_OUT + out[None, :]
            v_hi = tl.load(v_at)
            p *= UNIT
            p_hi = p.to(tl.float16)
            if SPLIT:
                pulls = tl.dot((p - p_hi.to(tl.float32)).to(tl.float16), v_hi)
                pulls = tl.dot(p_hi, tl.load(v_at + D_OUT), pulls)
                pulls = tl.dot(p_hi, v_hi, pulls)
            else:
                pulls = tl.dot(p_hi, v_hi)
            pull = pull * fade[:, None] + pulls * (1 / (UNIT * UNIT))  # fp32, for product_tile's reason
    lift = tl.exp(largest)
    if PRODUCT:
        at = pulled + (part * n + rows)[:, None] * D_OUT + out[None, :]
        tl.store(at, pull * lift[:, None], mask=(rows < n)[:, None])
    if chunk == 0:
        tl.store(mass + part * n + rows, row_mass * lift, mask=rows < n)
        tl.store(moved + part * n + rows, row_moved * lift, mask=rows < n)


@triton.jit(do_not_specialize=["problems", "each", "n", "m"])
def plan_sum_kernel(
    costs,  # fp32 [n, m] if SHARED, else [S, n, m]
    alpha,  # [G, n]
    beta,  # [G, m]
    scale,  # [G]
    weight,  # [G]
    out,  # [S, n, m]: sum of weight_g P_g over the problems g of a strip
    problems,  # G
    each,  # problems in a strip
    n,
    m,
    SHARED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program owns one tile of one strip of problems. Tiles are the fastest index of the grid."""
    wide = tl.cdiv(m, BLOCK)
    tiles = tl.cdiv(n, BLOCK) * wide
    part = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    rows = tile // wide * BLOCK + tl.arange(0, BLOCK)
    cols = tile % wide * BLOCK + tl.arange(0, BLOCK)
    inside = (rows < n)[:, None] & (cols < m)[None, :]
    at = rows.to(tl.int64)[:, None] * m + cols[None, :]
    cost = tl.load(costs + at + (0 if SHARED else part * n * m), mask=inside, other=0.0)
    first = part * each
    alpha += first * n
    beta += first * m
    scale += first
    weight += first
    total = tl.zeros([BLOCK, BLOCK], tl.float32)
    for _ in range(tl.minimum(problems - first, each).to(tl.int32)):
        row_alpha = tl.load(alpha + rows, mask=rows < n, other=NEVER)
        col_beta = tl.load(beta + cols, mask=cols < m, other=NEVER)
        exponent = row_alpha[:, None] - tl.load(scale) * cost + col_beta[None, :]
        total += tl.load(weight) * tl.exp(exponent)
        alpha += n
        beta += m
        scale += 1
        weight += 1
    tl.store(out + part * n * m + at, total, mask=inside)
