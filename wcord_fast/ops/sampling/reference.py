"""The draws in plain PyTorch integer arithmetic, on any device: the oracle that every backend equals bit for bit.

uint32 values are held in int64 tensors; a product that passes 2^63 wraps, which leaves its low 64 bits right.
The derivation and the golden values are in README.md beside this file.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .spec import DrawSpec

MASK32 = 0xFFFFFFFF
PHILOX_ROUNDS = 10
MAX_POOL = 2**31

# The permutation's rounds: few index bits mix slowly, so small pools take more.
SMALL_BITS, SMALL_ROUNDS, ROUNDS = 8, 10, 6


def philox(c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, key0: Tensor, key1: Tensor) -> tuple[Tensor, ...]:
    """Philox4x32-10 (Salmon et al., SC 2011): four uint32 words for each counter. All int64 tensors, broadcast."""
    for i in range(PHILOX_ROUNDS):
        if i:
            key0, key1 = (key0 + 0x9E3779B9) & MASK32, (key1 + 0xBB67AE85) & MASK32
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            (p1 >> 32) & MASK32 ^ c1 ^ key0,
            p1 & MASK32,
            (p0 >> 32) & MASK32 ^ c3 ^ key1,
            p0 & MASK32,
        )
    return c0, c1, c2, c3


def keyed_philox(c0: Tensor, anchor: Tensor, state: Tensor) -> tuple[Tensor, ...]:
    """q(c0): key = the seed's halves, counter = (c0, anchor, step lo, step hi); `state` is (seed, step)."""
    low, high = state & MASK32, (state >> 32) & MASK32
    return philox(c0, anchor & MASK32, low[1], high[1], low[0], high[0])


def mulhi64(high: Tensor, low: Tensor, n: Tensor | int) -> Tensor:
    """floor(word * n / 2^64) of the 64-bit word (high << 32 | low), for n <= 2^31."""
    return (high * n + ((low * n) >> 32)) >> 32


class Permutation:
    """A keyed bijection of [0, P_b) for each anchor b, and its inverse at the same cost.

    Args:
        pool: int64 [B], P_b >= 1.
        anchor: int64 [B], global anchor numbers.
        state: int64 [2], (seed, step).
    """

    def __init__(self, pool: Tensor, anchor: Tensor, state: Tensor):
        self.pool = pool[:, None]  # [B, 1]
        bits = ((pool[:, None] - 1) >> torch.arange(32, device=pool.device) > 0).sum(1, keepdim=True)  # [B, 1]
        self.mask, self.shift = (1 << bits) - 1, (bits + 1) // 2
        self.small = bits <= SMALL_BITS
        pairs = max(SMALL_ROUNDS, ROUNDS) // 2
        counter = MASK32 - torch.arange(pairs, device=pool.device)[None]  # [1, R/2]
        q = keyed_philox(counter, anchor[:, None], state)  # 4 x [B, R/2]
        self.keys = [
            (q[2 * half][:, j, None] | 1, q[2 * half + 1][:, j, None]) for j in range(pairs) for half in range(2)
        ]

    def forward(self, x: Tensor) -> Tensor:
        """pi(x): int64 [B, n] of positions in [0, P_b) to the same."""
        return self._walk(x, self._rounds)

    def inverse(self, x: Tensor) -> Tensor:
        """pi^-1(x), so that `inverse(r) < K` says whether row position r is in the sample."""
        return self._walk(x, self._rounds_back)

    def _walk(self, x: Tensor, rounds) -> Tensor:
        # Cycle walking: the rounds permute [0, 2^w); repeated until the value is below P they permute [0, P).
        x = rounds(x)
        outside = x >= self.pool
        while bool(outside.any()):
            x = torch.where(outside, rounds(x), x)
            outside = x >= self.pool
        return x

    def _rounds(self, x: Tensor) -> Tensor:
        for i, (odd, add) in enumerate(self.keys):
            y = (x * odd + add) & self.mask
            y = y ^ (y >> self.shift)
            x = y if i < ROUNDS else torch.where(self.small, y, x)
        return x

    def _rounds_back(self, x: Tensor) -> Tensor:
        for i, (odd, add) in reversed(list(enumerate(self.keys))):
            y = x ^ (x >> self.shift)  # its own inverse, as 2 * shift >= w
            y = ((y - add) * inverse_mod32(odd)) & self.mask
            x = y if i < ROUNDS else torch.where(self.small, y, x)
        return x


def inverse_mod32(odd: Tensor) -> Tensor:
    """The inverse of an odd number modulo 2^32, by Newton's iteration (3 bits right at first, doubling)."""
    x = odd
    for _ in range(4):
        x = (x * ((2 - odd * x) & MASK32)) & MASK32
    return x


def anchors_of(index: Tensor, anchor_offset: int) -> Tensor:
    """Global anchor numbers of a batch, int64 [B]."""
    return torch.arange(index.shape[0], device=index.device) + anchor_offset


def pool_size(index: Tensor, num_data: int, spec: DrawSpec) -> Tensor:
    """P_b, the number of rows that anchor b may draw: int64 [B]."""
    whole = torch.full_like(index, num_data, dtype=torch.int64)
    if spec.source == "self":
        return whole - 1
    if spec.source == "class":
        label = spec.table("label")[index].long()
        start = spec.table("class_start").long()
        return whole - (start[label + 1] - start[label])
    return whole


def pool_row(position: Tensor, index: Tensor, spec: DrawSpec) -> Tensor:
    """Row of each pool position: int64 [B, n] in [0, P_b) -> int64 [B, n] in [0, N)."""
    if spec.source == "self":
        return position + (position >= index[:, None])
    if spec.source == "class":
        label = spec.table("label")[index].long()
        start = spec.table("class_start").long()
        first, size = start[label][:, None], (start[label + 1] - start[label])[:, None]
        return spec.table("order")[position + torch.where(position >= first, size, 0)].long()
    return position


def draw(index: Tensor, num_data: int, spec: DrawSpec) -> Tensor:
    """Rows of the K negatives of each anchor.

    Args:
        index: integer [B], each anchor's own row in [0, N) (checked by the caller).
        num_data: N.
        spec: which rows; `spec.whole_pool` must be False and `spec.source` not "given".
    Returns:
        int64 [B, K]; column j is draw(j).
    """
    index = index.long()
    anchor, state = anchors_of(index, spec.anchor_offset), spec.table("state")
    if spec.source == "weighted":
        return _draw_weighted(anchor, num_data, spec, state)
    pool = pool_size(index, num_data, spec)
    if spec.replacement == "yes":
        position = _draw_with_replacement(anchor, pool, spec.k, state)
    else:
        k = torch.arange(spec.k, device=index.device)[None]  # [1, K]
        # Where K exceeds the pool (only under "auto") the permutation's argument is a dummy, replaced below.
        position = Permutation(pool, anchor, state).forward(torch.minimum(k, pool[:, None] - 1))
        if spec.replacement == "auto":
            with_replacement = _draw_with_replacement(anchor, pool, spec.k, state)
            position = torch.where(spec.k > pool[:, None], with_replacement, position)
    return pool_row(position, index, spec)


def _words(anchor: Tensor, k: int, state: Tensor) -> tuple[Tensor, Tensor]:
    """The 64-bit word of each draw with replacement, as its (high, low) halves, int64 [B, K]."""
    counter = torch.arange((k + 1) // 2, device=anchor.device)[None]
    q = keyed_philox(counter, anchor[:, None], state)  # 4 x [B, ceil(K/2)]
    low, high = (
        torch.stack((q[0], q[2]), 2),
        torch.stack((q[1], q[3]), 2),
    )  # draw k uses words 2*(k&1), 2*(k&1)+1
    return high.flatten(1)[:, :k], low.flatten(1)[:, :k]


def _draw_with_replacement(anchor: Tensor, pool: Tensor, k: int, state: Tensor) -> Tensor:
    return mulhi64(*_words(anchor, k, state), pool[:, None])


def _draw_weighted(anchor: Tensor, num_data: int, spec: DrawSpec, state: Tensor) -> Tensor:
    high, low = _words(anchor, spec.k, state)
    column = mulhi64(high, low, num_data)
    fraction = ((high << 32) | low) * num_data  # low 64 bits of word * N
    sign = torch.iinfo(torch.int64).min  # flipping the sign bit turns int64 order into uint64 order
    keep = (fraction ^ sign) < (spec.table("threshold")[column] ^ sign)
    return torch.where(keep, column, spec.table("alias")[column].long())
