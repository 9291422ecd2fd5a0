"""The draws again, in plain Python integers, written from their definition and sharing no code with the package.

Slow and obvious: the second independent implementation that every backend is compared with.
"""

from __future__ import annotations

M32, M64 = 2**32 - 1, 2**64 - 1
ROUNDS_SMALL, ROUNDS_LARGE = 10, 6  # rounds of the permutation for w <= 8 bits, and above

# Seed, step and anchor 3 of the published values, and the values.
GOLDEN_SEED, GOLDEN_STEP, GOLDEN_ANCHOR = 0x0123456789ABCDEF, 5, 3
GOLDEN_PERMUTATION = {
    5: [1, 0, 4, 2, 3],
    1000: [830, 530, 578, 259, 798, 196],
    49500: [30542, 14743, 41229, 43178, 2263, 31088],
}
GOLDEN_REPLACED_50000 = [31902, 27048, 10680, 48858, 17601, 8783]


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & M32, (p0 >> 32) ^ c3 ^ k1, p0 & M32
        k0, k1 = (k0 + 0x9E3779B9) & M32, (k1 + 0xBB67AE85) & M32
    return c0, c1, c2, c3


def stream(seed: int, step: int, anchor: int, c0: int) -> tuple[int, int, int, int]:
    """q(c0) of one anchor in one step; a negative seed stands for its 64 bits."""
    seed, step = seed & M64, step & M64
    return philox((c0, anchor & M32, step & M32, step >> 32), (seed & M32, seed >> 32))


def permutation(seed: int, step: int, anchor: int, size: int, count: int) -> list[int]:
    """pi(0), ..., pi(count - 1) of the keyed permutation of [0, size)."""
    if size == 1:
        return [0] * count
    width = (size - 1).bit_length()
    rounds = ROUNDS_SMALL if width <= 8 else ROUNDS_LARGE
    keys = []
    for j in range(rounds // 2):
        q = stream(seed, step, anchor, M32 - j)
        keys += [(q[0] | 1, q[1]), (q[2] | 1, q[3])]
    out = []
    for x in range(count):
        while True:
            for odd, add in keys:
                x = (x * odd + add) % 2**width
                x ^= x >> ((width + 1) // 2)
            if x < size:
                break
        out.append(x)
    return out


def words(seed: int, step: int, anchor: int, count: int) -> list[int]:
    """The 64-bit words of draws 0 .. count-1 with replacement."""
    out = []
    for k in range(count):
        q = stream(seed, step, anchor, k >> 1)
        out.append(q[2 * (k & 1) + 1] << 32 | q[2 * (k & 1)])
    return out


def draw(
    index: list[int],
    num_data: int,
    k: int,
    *,
    seed: int,
    step: int,
    exclude: str = "none",
    replacement: str = "no",
    labels: list[int] | None = None,
    alias: tuple[list[int], list[int]] | None = None,
    anchor_offset: int = 0,
) -> list[list[int]]:
    """Rows of the negatives of each anchor; `alias` is (threshold, other row) per row, for weighted draws."""
    out = []
    for b, row in enumerate(index):
        anchor = anchor_offset + b
        # The pool in its order: by class then row, or by row, without the excluded ones.
        pool = list(range(num_data))
        if exclude == "self":
            pool.remove(row)
        elif exclude == "class":
            assert labels is not None
            pool = [r for r in sorted(pool, key=lambda r: labels[r]) if labels[r] != labels[row]]
        if alias is not None:
            threshold, other = alias
            columns = [(w * num_data >> 64, w * num_data & M64) for w in words(seed, step, anchor, k)]
            out.append([c if fraction < threshold[c] else other[c] for c, fraction in columns])
        elif replacement == "yes" or (replacement == "auto" and k > len(pool)):
            out.append([pool[w * len(pool) >> 64] for w in words(seed, step, anchor, k)])
        else:
            out.append([pool[r] for r in permutation(seed, step, anchor, len(pool), k)])
    return out
