"""Choice of rows with every class in proportion."""

from __future__ import annotations

import numpy as np

from ..ops import checks


def stratified_rows(labels: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """`n` row numbers of `labels`, ascending, each class in proportion to its size.

    They are a function of (labels, n, seed). Class c gets floor(n * N_c / N); the remaining rows go to the largest
    remainders, the lower class first.

    Args:
        labels: int64 [N].
        n: 1 .. N.
        seed: chooses the rows within each class.

    Raises:
        ValueError: n is out of range.
    """
    checks.integer("n", n, least=1)
    total = len(labels)
    if n > total:
        raise ValueError(f"n: expected at most the {total} rows there are, got {n}")
    quota, rest = np.divmod(np.bincount(labels) * n, total)  # [C]
    quota[np.argsort(-rest, kind="stable")[: n - quota.sum()]] += 1
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(np.flatnonzero(labels == c))[:q] for c, q in enumerate(quota)]
    return np.sort(np.concatenate(chosen))


def stratified_split(labels: np.ndarray, n_test: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(train rows, test rows), both ascending, `n_test` of them for testing.

    Raises:
        ValueError: n_test is out of range, or a class would have no training row.
    """
    test = stratified_rows(labels, n_test, seed)
    train = np.setdiff1d(np.arange(len(labels)), test)
    missing = np.setdiff1d(labels, labels[train])
    if len(missing):
        raise ValueError(f"n_test: {n_test} of {len(labels)} rows leaves class {missing[0]} nothing to train on")
    return train, test
