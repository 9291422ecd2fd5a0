"""The keyed permutation is uniform in margins and pairs of ranks, over seeds, steps and anchors.

The tests use a NumPy implementation, vectorised over keys. It equals the plain Python one, which every backend equals
bit for bit.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2, norm

from . import philox_python
from .philox_python import M32, ROUNDS_LARGE, ROUNDS_SMALL

KEYS = 200_000
ALPHA = 1e-6  # level of one test; `smallest_p` corrects for its several statistics (Bonferroni)


def philox(counter, key):
    """Philox4x32-10 over arrays of uint32 values held in uint64."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    mask = np.uint64(M32)
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ k0,
            p1 & mask,
            (p0 >> np.uint64(32)) ^ c3 ^ k1,
            p0 & mask,
        )
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & mask, (k1 + np.uint64(0xBB67AE85)) & mask
    return c0, c1, c2, c3


def permutations(size: int, rounds: int, seed: np.ndarray, step: np.ndarray, anchor: np.ndarray) -> np.ndarray:
    """[keys, size]: row i is the permutation of [0, size) of key i. All key parts are uint64 [keys]."""
    width = (size - 1).bit_length()
    mask, shift = np.uint32(2**width - 1), np.uint32((width + 1) // 2)
    keys = []
    for j in range(rounds // 2):
        c0 = np.full(seed.shape, M32 - j, np.uint64)
        low, high = np.uint64(M32), np.uint64(32)
        q = philox((c0, anchor, step & low, step >> high), (seed & low, seed >> high))
        keys += [(q[i] | np.uint64(1), q[i + 1]) for i in (0, 2)]
    keys = [(odd.astype(np.uint32), add.astype(np.uint32)) for odd, add in keys]
    x = np.tile(np.arange(size, dtype=np.uint32), (len(seed), 1))
    key_of = np.repeat(np.arange(len(seed)), size)
    flat = x.reshape(-1)
    todo = np.arange(flat.size)
    while todo.size:
        y, k = flat[todo], key_of[todo]
        for odd, add in keys:
            y = (y * odd[k] + add[k]) & mask
            y ^= y >> shift
        flat[todo] = y
        todo = todo[y >= size]
    return x


def key_family(family: str, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Seeds, steps and anchors, uint64 [count] each, of keys that differ in the one that `family` names."""
    seed = np.full(count, 0xDEADBEEF12345678, np.uint64)
    step, anchor = np.full(count, 5, np.uint64), np.full(count, 3, np.uint64)
    number = np.arange(count, dtype=np.uint64)
    if family == "seed":
        seed = np.random.default_rng(0).integers(0, 2**64, count, dtype=np.uint64)
    elif family == "step":
        step = number
    else:
        anchor = number
    return seed, step, anchor


def smallest_p(perms: np.ndarray) -> float:
    """The smallest p-value of the statistics of ranks and of pairs of ranks, times their number."""
    keys, size = perms.shape
    p_values = []
    # Rank against row: a table with fixed margins, (size-1)^2 degrees of freedom; and the first and last rank alone.
    table = np.stack([np.bincount(perms[:, k], minlength=size) for k in range(size)])
    cell = keys / size
    p_values.append(chi2.sf(((table - cell) ** 2 / cell).sum() * (size - 1) / size, (size - 1) ** 2))
    for k in (0, size - 1):
        p_values.append(chi2.sf(((table[k] - cell) ** 2 / cell).sum(), size - 1))
    if size > 2:
        # Two ranks' rows together: first and second, first and last.
        for i, j in ((0, 1), (0, size - 1)):
            joint = np.bincount(perms[:, i].astype(np.int64) * size + perms[:, j], minlength=size**2).reshape(
                size, size
            )
            cell = keys / (size * (size - 1))
            off = ~np.eye(size, dtype=bool)
            p_values.append(chi2.sf(((joint[off] - cell) ** 2 / cell).sum(), size * (size - 1) - 1))
        # Both rows in the sample of half the pool: the largest deviation over all pairs of rows.
        k = max(2, size // 2)
        member = np.zeros((keys, size), np.float32)
        member[np.arange(keys)[:, None], perms[:, :k]] = 1
        both = (member.T @ member)[np.triu_indices(size, 1)]
        fraction = k * (k - 1) / (size * (size - 1))
        if fraction < 1:
            z = np.abs(both - keys * fraction).max() / np.sqrt(keys * fraction * (1 - fraction))
            p_values.append(2 * norm.sf(z) * both.size)
        # Consecutive keys: the first rank's row in this one and the next.
        serial = np.bincount(perms[:-1, 0].astype(np.int64) * size + perms[1:, 0], minlength=size**2)
        cell = (keys - 1) / size**2
        p_values.append(chi2.sf(((serial - cell) ** 2 / cell).sum(), size**2 - 1))
    return min(p_values) * len(p_values)


def test_numpy_equals_plain_python():
    seed, step, anchor = key_family("seed", 5)
    for size, rounds in ((5, ROUNDS_SMALL), (100, ROUNDS_SMALL), (300, ROUNDS_LARGE)):
        ours = permutations(size, rounds, seed, step, anchor)
        for i in range(5):
            expected = philox_python.permutation(int(seed[i]), int(step[i]), int(anchor[i]), size, size)
            assert ours[i].tolist() == expected


@pytest.mark.parametrize("family", ["seed", "step", "anchor"])
@pytest.mark.parametrize("size", [2, 3, 4, 5, 6, 7, 8, 11, 13, 16])
def test_small_pools_are_flat(size, family):
    assert smallest_p(permutations(size, ROUNDS_SMALL, *key_family(family, KEYS))) > ALPHA


@pytest.mark.parametrize(("size", "keys"), [(20, 100_000), (33, 60_000), (100, 40_000), (257, 20_000), (300, 20_000)])
def test_larger_pools_are_flat(size, keys):
    rounds = ROUNDS_SMALL if size <= 256 else ROUNDS_LARGE
    assert smallest_p(permutations(size, rounds, *key_family("step", keys))) > ALPHA


@pytest.mark.parametrize("size", [5, 8, 16, 100])
def test_permutation_of_too_few_rounds_is_not_flat(size):
    assert smallest_p(permutations(size, 2, *key_family("seed", 40_000))) < 1e-12
