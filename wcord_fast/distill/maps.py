"""Helpers shared by the methods on feature maps."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor
from torch.nn import functional as F

from .base import Pair


def same_size(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Maps [B, C, H, W], the larger averaged down to the size of the smaller."""
    size_s, size_t = s.shape[2:], t.shape[2:]
    if size_s == size_t:
        return s, t
    if size_s[0] >= size_t[0] and size_s[1] >= size_t[1]:
        return F.adaptive_avg_pool2d(s, size_t), t  # type: ignore[arg-type]
    if size_s[0] <= size_t[0] and size_s[1] <= size_t[1]:
        return s, F.adaptive_avg_pool2d(t, size_s)  # type: ignore[arg-type]
    raise ValueError(f"expected one map to be the smaller in height and width, got {[*size_s]} and {[*size_t]}")


def require_same_aspect(method: str, pairs: Iterable[tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
    """ValueError unless the maps [C, H, W] of every (student, teacher) have one aspect ratio.

    A map has the image's size divided by the stride and rounded to a pixel. So one factor, up to that rounding, must
    turn the teacher's height and width into the student's. Published code compares square maps only.
    """
    for s, t in pairs:
        low = max(s[i] / (t[i] + 1) for i in (1, 2))
        high = min(s[i] / (t[i] - 1) if t[i] > 1 else math.inf for i in (1, 2))
        if s[1:] != t[1:] and low >= high:
            raise ValueError(
                f"{method}: compares maps position by position, which needs one aspect ratio, but the student's is "
                f"{list(s)} and the teacher's {list(t)}"
            )


def stage_maps(method: str, pair: Pair) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(student, teacher) shapes [C, H, W] of the stages feats[1:-1], which must be equally many maps on both sides."""
    s, t = pair.student_shapes[1:-1], pair.teacher_shapes[1:-1]
    if len(s) != len(t):
        raise ValueError(
            f"{method}: compares the stages one by one, but the student has {len(s)} of them and the teacher {len(t)}"
        )
    require_maps(method, [*s, *t])
    return list(zip(s, t, strict=True))


def require_maps(method: str, shapes) -> None:
    """ValueError unless every shape is [C, H, W]."""
    if not shapes:
        raise ValueError(f"{method}: compares feature maps between the first and the last feature, but there are none")
    for shape in shapes:
        if len(shape) != 3:
            raise ValueError(f"{method}: compares feature maps [C, H, W], but one of the features is {list(shape)}")
