"""Measures of a classifier's test outputs, beside accuracy."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import checks


def auc(logits: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve in percent, scikit-learn's `roc_auc_score`; ties count one half.

    With two classes it is the area of class 1 against class 0, ordered by the difference of the logits (softmax gives
    the same order, but ties near 0 and 1). With more it is the mean over classes of each against the rest, ordered by
    softmax.

    Args:
        logits: floating [N, C], C at least 2.
        labels: int64 [N] in [0, C); every class must occur.
    Raises:
        ValueError: a class without an image (no curve exists), or logits that are not finite.
    """
    n, classes = checks.tensor("logits", logits, shape=("N", "C")).shape
    checks.tensor("labels", labels, shape=(n,), dtypes=[torch.int64])
    if classes < 2:
        raise ValueError(f"logits: expected at least 2 classes, got shape {list(logits.shape)}")
    if not bool(logits.isfinite().all()):
        raise ValueError("logits: NaN or infinite values, which have no order")
    counts = torch.bincount(labels, minlength=classes)
    if len(counts) > classes:
        raise ValueError(f"labels: expected 0 .. {classes - 1}, got {int(labels.max())}")
    if bool((counts == 0).any()):
        raise ValueError(f"labels: no image of class {int(counts.argmin())}; the area is that between two classes")
    scores = logits.detach().double()
    if classes == 2:
        return 100 * _area(scores[:, 1] - scores[:, 0], labels == 1)
    scores = scores.softmax(1)
    return 100 * sum(_area(scores[:, c], labels == c) for c in range(classes)) / classes


def _area(scores: Tensor, positive: Tensor) -> float:
    """Fraction of (positive, negative) pairs in which the positive scores higher; equal scores count a half.

    Args:
        scores: [N].
        positive: bool [N], with both values.
    """
    _, inverse, counts = scores.unique(return_inverse=True, return_counts=True)
    rank = counts.cumsum(0).double() - (counts - 1) / 2  # mean rank, from 1, of equal scores
    n = int(positive.sum())
    return float(rank[inverse][positive].sum() - n * (n + 1) / 2) / (n * (len(scores) - n))
