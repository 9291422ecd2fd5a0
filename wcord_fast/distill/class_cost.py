"""The cost between classes that WKD-L transports at: how far the teacher's features of two classes are from alike.

Likeness is linear CKA (Kornblith et al., ICML 2019) of the features of b images of either class, X and Y [b, D], each
column centred: |X' Y|^2 / (|X' X| |Y' Y|), Frobenius norms. Image k of one class is compared with image k of the other,
in the order of the data set, as in the public code. A class of fewer than two images is like no other.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

CHUNK = 2**24  # elements of Gram matrices that are held at once


def slots_of(labels: Tensor, classes: int, most: int | None) -> tuple[Tensor, int]:
    """The place of every image among its class's first b, -1 for the later ones and for unknown labels; and b.

    b is the size of the smallest class of at least two images, at most `most`; a smaller class has no places.

    Args:
        labels: int64 [N] on the CPU; below 0 where the class is unknown.
    Returns:
        int64 [N], place + b * class; and b.
    Raises:
        ValueError: no class has two images, or there are labels of more classes.
    """
    known = labels[labels >= 0]
    counts = torch.bincount(known, minlength=classes)
    if len(counts) > classes:
        raise ValueError(f"labels: expected classes in [0, {classes}), got {int(known.max())}")
    if counts.max() < 2:
        raise ValueError("the cost between classes needs two training images of a class, but none has; give it by file")
    size = min(int(counts[counts >= 2].min()), most or len(labels))
    order = torch.argsort(labels, stable=True)
    first = torch.cat([counts.new_zeros(1), counts.cumsum(0)[:-1]]) + int((labels < 0).sum())
    place = torch.empty_like(labels)
    place[order] = torch.arange(len(labels)) - first[labels[order].clamp_min(0)]
    kept = (labels >= 0) & (place < size) & (counts[labels.clamp_min(0)] >= 2)
    return torch.where(kept, place + size * labels, -1), size


def cka_distance(features: Tensor) -> Tensor:
    """1 - linear CKA between all classes: [C, b, D], floating point, -> [C, C] with diagonal 0."""
    x = features - features.mean(1, keepdim=True)
    x = x / x.flatten(1).norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)[:, None, None]  # CKA does not see the scale
    classes, size, _ = x.shape
    rows = max(1, CHUNK // (classes * size))
    likeness = x.new_zeros(classes, classes)
    for k in range(0, size, rows):  # |X' Y|^2 is the inner product of the Gram matrices X X' and Y Y'
        gram = (x[:, k : k + rows] @ x.mT).flatten(1)
        likeness += gram @ gram.T
    norm = likeness.diagonal().sqrt()
    # A class whose features are all equal has norm 0, and likeness 0 to every other.
    likeness = likeness / (norm[:, None] * norm).clamp_min(torch.finfo(x.dtype).tiny)
    return (1 - likeness).clamp_min(0).fill_diagonal_(0)


def read_distance(file: str, classes: int) -> Tensor:
    """The matrix [classes, classes] that a .npy file of NumPy or one of `torch.save` holds, in fp32.

    Raises:
        ValueError: no such file, none of these, or not finite numbers of at least 0 in that shape.
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
