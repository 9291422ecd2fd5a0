"""The terms of NCE and the sigmoid in the Triton kernels of the dense plan: units of the GPU, stable softplus sums."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
FULL = tl.constexpr(2.0**60)  # a tile of 64 rows multiplies a product by 2^64 at most


@triton.jit
def exp2(v, INTERPRET: tl.constexpr):
    """2^v to 2 units in the last place; below 2^-126 zero."""
    if INTERPRET:
        return tl.exp2(v)
    return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [v], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def exp2_of_minus(v, INTERPRET: tl.constexpr):
    """2^-|v|, as `exp2`. The instruction takes both signs in its operand, which a subtraction from 0 would cost."""
    if INTERPRET:
        return tl.exp2(-tl.abs(v))
    return tl.inline_asm_elementwise(
        "{.reg .f32 v; abs.f32 v, $1; neg.f32 v, v; ex2.approx.ftz.f32 $0, v;}",
        "=f,f", [v], dtype=tl.float32, is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def log2(v, INTERPRET: tl.constexpr):
    """log2 of v >= 2 to 2^-22, relative. Near 1 that error would be absolute, and `log1p` is the one to take."""
    if INTERPRET:
        return tl.log2(tl.maximum(v, 1.0))
    return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [v], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def reciprocal(v, INTERPRET: tl.constexpr):
    """1 / v to 1 unit in the last place, for |v| up to 2^126."""
    if INTERPRET:
        return 1.0 / v
    return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [v], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def log1p(q):
    """log(1 + q) for q >= 0, as precise as log itself: the rounding error of 1 + q is corrected to first order."""
    w = 1.0 + q
    return tl.log(w) + (q - (w - 1.0)) / w


@triton.jit
def log1p_unit(t):
    """log(1 + t) for 0 <= t <= 1 without a log: 2 atanh(z), z = t / (2 + t) <= 1/3, its series to z^15 (2e-9)."""
    z = t / (2.0 + t)
    y = z * z
    p = 1.0 / 13.0 + y * (1.0 / 15.0)
    p = 1.0 / 11.0 + y * p
    p = 1.0 / 9.0 + y * p
    p = 1.0 / 7.0 + y * p
    p = 1.0 / 5.0 + y * p
    p = 1.0 / 3.0 + y * p
    return 2.0 * z + 2.0 * z * (y * p)


@triton.jit
def join_factors(p, q):
    """(1 + p)(1 + q) - 1: a product of factors kept without the 1, so that small ones lose nothing."""
    return p + q + p * q


@triton.jit
def _join(p, a, q, b):
    return join_factors(p, q), a + b


@triton.jit
def _multiply_out(t, linear, COLUMNS: tl.constexpr, INTERPRET: tl.constexpr):
    """Over every COLUMNS-th cell of a row: the product of the factors 1 + t, less 1, and the sum of `linear`."""
    BLOCK_B: tl.constexpr = t.shape[0]
    t = tl.reshape(t, [BLOCK_B, t.shape[1] // COLUMNS, COLUMNS])
    linear = tl.reshape(linear, [BLOCK_B, t.shape[1], COLUMNS])
    if INTERPRET:  # whose tl.reduce calls Python once per cell
        while t.shape[1] > 1:
            halves = [BLOCK_B, 2, t.shape[1] // 2, COLUMNS]
            p, q = tl.split(tl.permute(tl.reshape(t, halves), [0, 2, 3, 1]))
            a, b = tl.split(tl.permute(tl.reshape(linear, halves), [0, 2, 3, 1]))
            t, linear = _join(p, a, q, b)
        factors, total = tl.reshape(t, [BLOCK_B, COLUMNS]), tl.reshape(linear, [BLOCK_B, COLUMNS])
    else:
        factors, total = tl.reduce((t, linear), 1, _join)
    return factors, total


@triton.jit
def no_softplus(BLOCK_B: tl.constexpr, MEMBER: tl.constexpr):
    """The sums that `add_softplus` adds to: no terms yet."""
    zeros = tl.zeros([BLOCK_B, 8 if MEMBER == "mask" else 1], tl.float32)
    return zeros, zeros, zeros


@triton.jit
def add_softplus(total, lost, factors, u, t, member, MEMBER: tl.constexpr, INTERPRET: tl.constexpr):
    """Add log2(1 + 2^u) of each cell [B, n] of a tile, for t = 2^-|u|; u is -1e30 where the row is no negative.

    `total` [B, C] is in base 2, `lost` its rounding error (Kahan: a bank may have 20,000 tiles), and `factors` the
    product, less 1, of factors 1 + t <= 2: a log is added to `total` when it has grown beyond FULL. With bits of
    membership C is 8, sums over every eighth column: these lie in one thread, whatever tensor cores made the tile, so
    no thread waits for another. Else C is 1, for want of registers. Where a cell counts `member` times, MEMBER =
    "counts", each has its own log.
    """
    if MEMBER == "counts":
        term = tl.sum((tl.maximum(u, 0.0) + log1p_unit(t) * LOG2E) * member, 1, keep_dims=True)
    else:
        more, linear = _multiply_out(t, tl.maximum(u, 0.0), total.shape[1], INTERPRET)
        factors = join_factors(factors, more)
        full = factors > FULL
        term = tl.where(full, log2(factors, INTERPRET), 0.0) + linear
        factors = tl.where(full, 0.0, factors)
    term -= lost
    longer = total + term
    return longer, (longer - total) - term, factors


@triton.jit
def softplus_sum(total, factors):
    """The sum of all terms of `add_softplus` [B], in base 2."""
    return tl.sum(total + log1p(factors) * LOG2E, 1)


@triton.jit
def offset2(k_b, num_data, log_z, EPS: tl.constexpr):
    """log2 of (K_b / N + EPS) Z, the offset of score / tau."""
    return tl.log(k_b / num_data + EPS) * LOG2E + log_z * LOG2E
