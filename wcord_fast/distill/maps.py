"""What the methods on feature maps share."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .base import Pair


def same_size(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Maps [B, C, H, W]: the larger one averaged down to the height of the smaller (square, as published)."""
    if s.shape[2] > t.shape[2]:
        s = F.adaptive_avg_pool2d(s, t.shape[2:])  # type: ignore[arg-type]
    elif s.shape[2] < t.shape[2]:
        t = F.adaptive_avg_pool2d(t, s.shape[2:])  # type: ignore[arg-type]
    return s, t


def stage_maps(method: str, pair: Pair) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(student, teacher) shapes [C, H, W] of the stages feats[1:-1], which must be as many maps on both sides."""
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
