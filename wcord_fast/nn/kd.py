"""Hinton's knowledge distillation: the temperature-softened divergence of teacher and student logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import checks


class KDLoss(nn.Module):
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), mean over the batch (WCoRD, eq. 1, times T^2).

    Args:
        temperature: T > 0.
    """

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        self.temperature = checks.positive("temperature", temperature)

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """The loss, a scalar in fp32 (fp64 for fp64 logits), under autocast too.

        Args:
            student_logits: [B, C], any float dtype.
            teacher_logits: [B, C], same classes in the same order; it receives no gradient.
        Raises:
            ValueError: the shapes differ (KD needs one label set), or a dimension is empty.
        """
        s = checks.tensor("student_logits", student_logits, shape=("B", "C"))
        t = checks.tensor("teacher_logits", teacher_logits, shape=("B", "C"))
        if s.shape != t.shape:
            raise ValueError(
                f"teacher_logits: expected the shape of student_logits {list(s.shape)}, got {list(t.shape)}; "
                "KD needs both networks to score the same classes"
            )
        checks.same_device(student_logits=s, teacher_logits=t)
        dtype = torch.promote_types(torch.promote_types(s.dtype, t.dtype), torch.float32)
        log_s = F.log_softmax(s.to(dtype) / self.temperature, dim=1)
        log_t = F.log_softmax(t.detach().to(dtype) / self.temperature, dim=1)
        divergence = F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)
        return divergence * self.temperature**2

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"
