"""WKD-L's cost between classes: the dissimilarity of the teacher's features of two classes.

Similarity is linear CKA (Kornblith et al., ICML 2019), |X' Y|^2 / (|X' X| |Y' Y|) with Frobenius norms. X and Y [b, D]
are the features of b images of each class, with centred columns. Image k of one class is compared with image k of the
other, in the order of the data set, as in the public code. A class of fewer than two images has similarity 0 to others.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

CHUNK = 2**24  # elements of Gram matrices that are held at once


def slots_of(labels: Tensor, classes: int, limit: int | None) -> tuple[Tensor, int]:
    """The slot of every image, -1 for those without one, and the number b of slots per class.

    The first b images of a class have slots. b is the size of the smallest class of at least two images, or `limit` if
    that is less. Smaller classes and images without a label have no slots.

    Args:
        labels: int64 [N] on the CPU; below 0 where the class is unknown.
    Returns:
        int64 [N], position in the class + b * class; and b.
    Raises:
        ValueError: no class has two images, or a label is not below `classes`.
    """
    known = labels[labels >= 0]
    counts = torch.bincount(known, minlength=classes)
    if len(counts) > classes:
        raise ValueError(f"labels: expected classes in [0, {classes}), got {int(known.max())}")
    if counts.max() < 2:
        raise ValueError("the cost between classes needs two training images of a class, but none has; give it by file")
    size = min(int(counts[counts >= 2].min()), limit or len(labels))
    order = torch.argsort(labels, stable=True)
    first = torch.cat([counts.new_zeros(1), counts.cumsum(0)[:-1]]) + int((labels < 0).sum())
    position = torch.empty_like(labels)
    position[order] = torch.arange(len(labels)) - first[labels[order].clamp_min(0)]
    kept = (labels >= 0) & (position < size) & (counts[labels.clamp_min(0)] >= 2)
    return torch.where(kept, position + size * labels, -1), size


def cka_distance(features: Tensor) -> Tensor:
    """Floating-point [C, b, D] -> [C, C]: 1 - linear CKA between all classes, 0 on the diagonal."""
    x = features - features.mean(1, keepdim=True)
    x = x / x.flatten(1).norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)[:, None, None]  # CKA ignores scale
    classes, size, _ = x.shape
    rows = max(1, CHUNK // (classes * size))
    similarity = x.new_zeros(classes, classes)
    for k in range(0, size, rows):  # |X' Y|^2 is the inner product of the Gram matrices X X' and Y Y'
        gram = (x[:, k : k + rows] @ x.mT).flatten(1)
        similarity += gram @ gram.T
    norm = similarity.diagonal().sqrt()
    # A class whose features are all equal has norm 0, and similarity 0 to every other.
    similarity = similarity / (norm[:, None] * norm).clamp_min(torch.finfo(x.dtype).tiny)
    return (1 - similarity).clamp_min(0).fill_diagonal_(0)


def read_distance(file: str, classes: int) -> Tensor:
    """The matrix [classes, classes] in a file of NumPy (.npy) or `torch.save`, in fp32.

    Raises:
        ValueError: the file cannot be read, or does not hold finite numbers of at least 0 in that shape.
    """
    path = Path(file)
    try:
        if path.suffix == ".npy":
            matrix = torch.from_numpy(np.load(path, allow_pickle=False))
        else:
            matrix = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises anything
        reason = str(error).split("\n")[0]
        raise ValueError(f"cost: {file!r} cannot be read as a .npy file or a tensor of torch.save: {reason}") from None
    if not isinstance(matrix, Tensor) or matrix.shape != (classes, classes) or matrix.is_complex():
        shape = list(matrix.shape) if isinstance(matrix, Tensor) else type(matrix).__name__
        raise ValueError(f"cost: expected a matrix [{classes}, {classes}] in {file!r}, got {shape}")
    matrix = matrix.detach().to(torch.float32)
    if not (matrix.isfinite() & (matrix >= 0)).all():
        raise ValueError(f"cost: expected finite numbers of at least 0 in {file!r}")
    return matrix
