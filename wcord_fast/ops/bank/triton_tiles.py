"""Shared by the Triton kernels of the dense plan: split products, tiles of a bank, membership.

**Products.** Every product runs on the bf16 tensor cores with fp32 accumulation. A factor v is split into terms
v = v0 + v1 + v2, each the bf16 rounding of what the ones before left: 8 bits of mantissa per term, so 1 term holds a
bf16, 2 an fp16, 3 an fp32, exactly. Of the partial products a_i b_j those with i + j < LIMIT are summed, the smallest
first, and the rest is below 2^-(8 LIMIT): LIMIT = 3 is fp32, at the range of bf16 (which is that of fp32).
bf16 has two advantages over 3xTF32 here: Hopper multiplies it from shared memory in both orders, which this needs (the
same bank tile is [n, d] in X M^T and [d, n] in W M), and a bf16 bank needs one term only.

**Interpreter.** It multiplies the bits of bf16 operands as integers, and truncates to bf16 where a GPU rounds. So with
INTERPRET the terms, still bf16 values, are multiplied as fp32, and the rounding is written out.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Sizes of a call: a kernel compiled anew for each that is 1, or a multiple of 16, would be no faster. What rows lie
# apart is not among them: it decides how wide a load can be.
SIZES = ["batch", "num_data", "first_row", "num_rows", "splits", "k"]


@triton.jit
def _bf16(v, INTERPRET: tl.constexpr):
    """fp32 rounded to nearest even."""
    if INTERPRET:
        bits = v.to(tl.int32, bitcast=True)
        v = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
    return v.to(tl.bfloat16)


@triton.jit
def _round(v, INTERPRET: tl.constexpr):
    """fp32 rounded to bf16, and that value as fp32 again. Two values share one conversion on a GPU."""
    if INTERPRET:
        bits = _bf16(v, INTERPRET)
        return bits, bits.to(tl.float32)
    return tl.inline_asm_elementwise(
        "cvt.rn.bf16x2.f32 $0, $4, $3; shl.b32 $1, $0, 16; and.b32 $2, $0, 0xffff0000;",
        "=&r,=r,=r,r,r", [v], dtype=(tl.bfloat16, tl.float32), is_pure=True, pack=2,
    )  # fmt: skip


@triton.jit
def split(v, TERMS: tl.constexpr, INTERPRET: tl.constexpr):
    """The bf16 terms of v. Of the three returned only the first TERMS count."""
    if v.dtype == tl.bfloat16:
        return v, v, v
    v = v.to(tl.float32)
    if TERMS == 1:
        v0 = _bf16(v, INTERPRET)
        return v0, v0, v0
    v0, rounded = _round(v, INTERPRET)
    rest = v - rounded
    if TERMS == 2:
        v1 = _bf16(rest, INTERPRET)
        return v0, v1, v1
    v1, rounded = _round(rest, INTERPRET)
    return v0, v1, _bf16(rest - rounded, INTERPRET)


@triton.jit
def _dot(a, b, acc, INTERPRET: tl.constexpr):
    if INTERPRET:
        acc += tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    else:
        acc = tl.dot(a, b, acc)
    return acc


@triton.jit
def product(
    acc,  # fp32 [I, J]
    a0, a1, a2,  # [I, K] the terms of A, bf16
    b0, b1, b2,  # [K, J] the terms of B, bf16
    A_TERMS: tl.constexpr, B_TERMS: tl.constexpr, LIMIT: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """acc + A B in fp32, from the partial products a_i b_j with i + j < LIMIT."""
    if A_TERMS > 2 and LIMIT > 2:
        acc = _dot(a2, b0, acc, INTERPRET)
    if A_TERMS > 1 and B_TERMS > 1 and LIMIT > 2:
        acc = _dot(a1, b1, acc, INTERPRET)
    if B_TERMS > 2 and LIMIT > 2:
        acc = _dot(a0, b2, acc, INTERPRET)
    if A_TERMS > 1 and LIMIT > 1:
        acc = _dot(a1, b0, acc, INTERPRET)
    if B_TERMS > 1 and LIMIT > 1:
        acc = _dot(a0, b1, acc, INTERPRET)
    return _dot(a0, b0, acc, INTERPRET)


@triton.jit
def multiple_of(stride, UNIT: tl.constexpr):
    """`stride`, a multiple of UNIT, so that the compiler knows it. It knows multiples of 16 by itself."""
    return stride if UNIT == 16 else stride // UNIT * UNIT


@triton.jit
def load_rows(ptr, row, row_ok, stride, d0, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Columns [d0, d0 + BLOCK_D) of rows of a matrix, `stride` elements apart; zero beyond D and where not row_ok."""
    d = d0 + tl.arange(0, BLOCK_D)
    at = row.to(tl.int64)[:, None] * stride + d[None, :]
    ok = row_ok[:, None]
    if D % BLOCK_D != 0:
        ok = ok & (d < D)[None, :]
    return tl.load(ptr + at, mask=ok, other=0.0)


@triton.jit
def load_tile(ptr, n0, num_rows, stride, d0, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr):
    """Columns [d0, d0 + BLOCK_D) of the rows [n0, n0 + BLOCK_N) of a matrix of num_rows; behind its last row that row.

    Only the first row's address takes 64 bits of arithmetic (`triton_launch.by_rows`).
    """
    i = tl.minimum(tl.arange(0, BLOCK_N), num_rows - 1 - n0)
    d = d0 + tl.arange(0, BLOCK_D)
    at = ptr + tl.cast(n0, tl.int64) * stride + (i[:, None] * stride + d[None, :])
    if D % BLOCK_D == 0:
        return tl.load(at)
    return tl.load(at, mask=tl.broadcast_to((d < D)[None, :], [BLOCK_N, BLOCK_D]), other=0.0)


@triton.jit
def load_terms(ptr, s, b, b_ok, batch, d0, D: tl.constexpr, BLOCK_D: tl.constexpr, TERMS: tl.constexpr):
    """Columns [d0, d0 + BLOCK_D) of the terms of anchors b of direction s, from bf16 [TERMS, S, B, D]."""
    plane = tl.num_programs(2).to(tl.int64) * batch * D
    ptr += s.to(tl.int64) * batch * D
    x0 = load_rows(ptr, b, b_ok, D, d0, D, BLOCK_D)
    x1 = x0
    x2 = x0
    if TERMS > 1:
        x1 = load_rows(ptr + plane, b, b_ok, D, d0, D, BLOCK_D)
    if TERMS > 2:
        x2 = load_rows(ptr + 2 * plane, b, b_ok, D, d0, D, BLOCK_D)
    return x0, x1, x2


@triton.jit
def long_scores(
    terms_ptr, s, b, b_ok, batch, bank_ptr, n0, num_rows, bank_stride,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    X_TERMS: tl.constexpr, M_TERMS: tl.constexpr, LIMIT: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """Scores [BLOCK_B, BLOCK_N] of rows longer than BLOCK_D: anchors and rows are fetched in pieces, for every tile."""
    score = tl.zeros([b.shape[0], BLOCK_N], tl.float32)
    for d0 in range(0, D, BLOCK_D):
        x0, x1, x2 = load_terms(terms_ptr, s, b, b_ok, batch, d0, D, BLOCK_D, X_TERMS)
        tile = load_tile(bank_ptr, n0, num_rows, bank_stride, d0, D, BLOCK_D, BLOCK_N)
        m0, m1, m2 = split(tile, M_TERMS, INTERPRET)
        score = product(score, x0, x1, x2, tl.trans(m0), tl.trans(m1), tl.trans(m2), X_TERMS, M_TERMS, LIMIT, INTERPRET)
    return score


@triton.jit
def score_tile(
    terms_ptr, x0, x1, x2, s, b, b_ok, batch, bank_ptr, n0, num_rows, bank_stride, own_d,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    X_TERMS: tl.constexpr, M_TERMS: tl.constexpr, LIMIT: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """Scores [BLOCK_B, BLOCK_N] of anchors b and rows [n0, n0 + BLOCK_N), and the terms of these rows.

    Of rows longer than BLOCK_D the terms of columns [own_d, own_d + BLOCK_D).

    x0, x1, x2 are the anchors' terms, of which only rows of at most BLOCK_D make use. A kernel that does not read the
    rows' terms does not load them.
    """
    tile = load_tile(bank_ptr, n0, num_rows, bank_stride, own_d if D > BLOCK_D else 0, D, BLOCK_D, BLOCK_N)
    if D > BLOCK_D:
        score = long_scores(
            terms_ptr, s, b, b_ok, batch, bank_ptr, n0, num_rows, bank_stride,
            D, BLOCK_D, BLOCK_N, X_TERMS, M_TERMS, LIMIT, INTERPRET,
        )  # fmt: skip
        m0, m1, m2 = split(tile, M_TERMS, INTERPRET)
    else:
        m0, m1, m2 = split(tile, M_TERMS, INTERPRET)
        score = product(
            tl.zeros([b.shape[0], BLOCK_N], tl.float32), x0, x1, x2, tl.trans(m0), tl.trans(m1), tl.trans(m2),
            X_TERMS, M_TERMS, LIMIT, INTERPRET,
        )  # fmt: skip
    return score, m0, m1, m2


@triton.jit
def is_row(index, num_data):
    """Whether the row number lies in [0, N)."""
    return tl.where(index >= 0, index, num_data) < num_data  # one comparison: `&` of two is no mask in the interpreter


@triton.jit
def own_rows(index_ptr, b, ok, num_data):
    """The anchors' own rows, int32; 0 for one out of [0, N), which the finish kernel flags."""
    index = tl.load(index_ptr + b, mask=ok, other=0)
    return tl.where(is_row(index, num_data), index, 0).to(tl.int32)


@triton.jit
def class_of(label_ptr, row, ok, MEMBER: tl.constexpr):
    """Classes of rows, or the rows themselves where the classes do not matter."""
    label = row
    if MEMBER == "class":
        label = tl.load(label_ptr + row, mask=ok, other=-1)
    return label


@triton.jit
def _spread(word, byte, INTERPRET: tl.constexpr):
    """-1 where the highest bit of that byte of the word is set, else 0."""
    if INTERPRET:
        return (word << (24 - 8 * byte)) >> 31
    word, selector = tl.broadcast(word, 0x8888 + 0x1111 * byte)
    return tl.inline_asm_elementwise(
        "prmt.b32 $0, $1, 0, $2;", "=r,r,r", [word, selector], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def where_member(value, other: tl.constexpr, member, MEMBER: tl.constexpr):
    """fp32 `value` where the row is a negative, else `other`."""
    if MEMBER == "mask":  # one LOP3 instead of a predicate for each cell
        rest = tl.full([1, 1], other, tl.float32).to(tl.int32, bitcast=True)
        return ((value.to(tl.int32, bitcast=True) & member) | (rest & ~member)).to(tl.float32, bitcast=True)
    return tl.where(member != 0, value, other)


@triton.jit
def member_tile(
    member_ptr, member_stride, b, b_ok, n0, num_rows, own, label, label_ptr,
    MEMBER: tl.constexpr, BLOCK_N: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """How often each row of the tile [n0, n0 + BLOCK_N) counts for each anchor: [BLOCK_B, BLOCK_N].

    int32 counts for MEMBER = "counts"; int32 -1 or 0 for "mask", from bit n & 31 of word n >> 5 (bits beyond the rows
    are zero); bool for the whole pools "none", "self" (not the anchor's own row) and "class" (of another class).
    All rows are numbered as in the banks, `own` (the anchor's) too, which lies outside [0, num_rows) if another part
    holds it; `label_ptr` is where their labels start.
    """
    column = tl.arange(0, BLOCK_N)
    n = n0 + column
    n_ok = n < num_rows
    if MEMBER == "mask":
        i = tl.arange(0, BLOCK_N // 32)
        word = n0 // 32 + i
        at = b.to(tl.int64)[:, None] * member_stride + word[None, :]
        ok = b_ok[:, None] & (word < (num_rows + 31) // 32)[None, :]
        words = tl.load(member_ptr + at, mask=ok, other=0)
        # Bit 8 i + j is moved to the head of byte i, by a shift that a thread's registers share, and spread by a PRMT.
        at_head = (words[:, :, None] << (7 - tl.arange(0, 8))[None, None, :])[:, :, None, :]
        byte = tl.arange(0, 4)[None, None, :, None]
        member = tl.reshape(_spread(at_head, byte, INTERPRET), [b.shape[0], BLOCK_N])
    elif MEMBER == "counts":
        # An address a row, and columns as small offsets that the load instructions take. A row's counts lie an even
        # number apart, the spare one is 0: so they are read in pairs.
        row_ptr = member_ptr + b.to(tl.int64) * multiple_of(member_stride, 2) + n0
        even = (num_rows + 1) // 2 * 2
        member = tl.load(row_ptr[:, None] + column[None, :], mask=b_ok[:, None] & (n < even)[None, :], other=0)
        member = member.to(tl.int32)
    elif MEMBER == "class":
        member = (class_of(label_ptr, n, n_ok, MEMBER)[None, :] != label[:, None]) & n_ok[None, :]
    elif MEMBER == "self":
        member = (n[None, :] != own[:, None]) & n_ok[None, :]
    else:
        member = n_ok[None, :] & b_ok[:, None]
    return member


@triton.jit
def charge(index, label, ok, num_data, k, class_start_ptr, MEMBER: tl.constexpr, CHARGE: tl.constexpr):
    """(K_b, weight of a negative), fp32. CHARGE is "drawn", "pool" or "expected".

    K and 1 for draws; P_b and 1 for the whole pool; K and K / P_b for the expectation over draws.
    """
    pool = index * 0 + num_data
    if MEMBER == "self":
        pool -= 1
    if MEMBER == "class":
        start = tl.load(class_start_ptr + label, mask=ok, other=0)
        pool -= tl.load(class_start_ptr + label + 1, mask=ok, other=0) - start
    size = pool.to(tl.float32)
    charged = size
    weight = size * 0.0 + 1.0
    if CHARGE != "pool":
        charged = size * 0.0 + k
    if CHARGE == "expected":
        weight = k / size
    return charged, weight
