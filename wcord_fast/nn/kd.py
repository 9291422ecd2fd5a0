"""Hinton's knowledge distillation as a loss module."""

from __future__ import annotations

from torch import Tensor, nn

from ..functional.kd import _kd_loss, check_temperature
from ..ops import checks


class KDLoss(nn.Module):
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), mean over the positions (WCoRD, eq. 1, times T^2).

    Args:
        temperature: T > 0, such that T^2 neither overflows nor vanishes in fp32.
        dim: the class dimension, not the first; default: the last of [B, T, V], dimension 1 of [B, C] and [B, C, H, W].
    """

    def __init__(self, temperature: float = 4.0, dim: int | None = None) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        self.dim = None if dim is None else checks.integer("dim", dim, least=-8)
        if dim == 0:
            raise ValueError("dim: expected the class dimension, got 0, the batch")

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss, a scalar in fp32 (fp64 for fp64 logits), under autocast too.

        Args:
            student_logits: [B, C], tokens' [B, T, V] or maps' [B, C, H, W], any float dtype.
            teacher_logits: shape and class order of `student_logits`; they receive no gradient.
            mask: bool [B], [B, T] or [B, H, W]: the positions that count.
        Raises:
            TypeError, ValueError: as `wcord_fast.functional.kd_loss`, which describes all three arguments.
        """
        return _kd_loss(student_logits, teacher_logits, self.temperature, mask, self.dim)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}" + (f", dim={self.dim}" if self.dim is not None else "")
