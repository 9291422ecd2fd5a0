"""Known pairs for the streaming kernels of triton_kernels.py: a 32-bit number for each label, made without a matrix."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .pairs import Pairs, kappa_of

BLOCK_M, BLOCK_N = 32, 64  # rows and columns in a tile


class KnownPairs(NamedTuple):
    """Known pairs as the kernels read them: cells of equal numbers, whose exponents are kappa higher."""

    rows: Tensor  # int32 [G, n]
    columns: Tensor  # int32 [G, m]
    kappa: Tensor  # [G]


@triton.jit(do_not_specialize=["n", "m"])
def pair_kernel(
    row_labels,  # int64 [G, n]; negative: no partner
    col_labels,  # int64 [G, m]
    col_mass,  # [G, m]
    ids,  # int32 [G, n] out: the first column with the row's label, or ALONE
    mass,  # [G, n] out: the mass of the columns with the row's label
    n,
    m,
    ALONE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """A program owns one block of rows. Rows of both sides that get one number have one label."""
    blocks = tl.cdiv(n, BLOCK_M)
    g = (tl.program_id(0) // blocks).to(tl.int64)
    rows = tl.program_id(0) % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    label = tl.load(row_labels + g * n + rows, mask=rows < n, other=-1)
    least = tl.full([BLOCK_M], m, tl.int32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for tile in range(tl.cdiv(m, BLOCK_N)):
        cols = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        others = tl.load(col_labels + g * m + cols, mask=cols < m, other=-1)
        pair = (label[:, None] == others[None, :]) & (label >= 0)[:, None]
        least = tl.minimum(least, tl.min(tl.where(pair, cols[None, :], m), 1))
        weight = tl.load(col_mass + g * m + cols, mask=cols < m, other=0.0)
        total += tl.sum(tl.where(pair, weight[None, :], 0.0), 1)
    tl.store(ids + g * n + rows, tl.where(least < m, least, ALONE), mask=rows < n)
    tl.store(mass + g * n + rows, total, mask=rows < n)


def known_pairs(a: Tensor, b: Tensor, pairs: Pairs) -> KnownPairs:
    """The pairs of rows with masses a [G, n] and columns with masses b [G, m], made without an n x m matrix."""
    rows, columns = pairs.rows.contiguous(), pairs.columns.contiguous()
    numbers, masses = [], []
    for alone, labels in ((-1, rows), (-2, columns)):  # no row is a pair with a column that has no partner
        g, n = labels.shape
        numbers.append(labels.new_empty(g, n, dtype=torch.int32))
        masses.append(b.new_empty(g, n))
        pair_kernel[(g * triton.cdiv(n, BLOCK_M),)](
            labels, columns, b, numbers[-1], masses[-1], n, columns.shape[1], alone, BLOCK_M, BLOCK_N,
            num_warps=4,
        )  # fmt: skip
    return KnownPairs(numbers[0], numbers[1], kappa_of((a * masses[0]).sum(-1), pairs.rho))
