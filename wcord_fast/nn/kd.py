"""Hinton's knowledge distillation: the temperature-softened divergence of teacher and student logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import checks
from ..ops.first_order import transforms_active


class KDLoss(nn.Module):
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), mean over the batch (WCoRD, eq. 1, times T^2).

    Args:
        temperature: T > 0, of a size that T^2 neither overflows nor vanishes in fp32.
    """

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        self.temperature = checks.positive("temperature", temperature)
        limits = torch.finfo(torch.float32)
        if not limits.tiny**0.5 <= self.temperature <= limits.max**0.5:
            raise ValueError(f"temperature: expected a number whose square is finite in float32, got {temperature:g}")

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """The loss, a scalar in fp32 (fp64 for fp64 logits), under autocast too.

        Args:
            student_logits: [B, C], any float dtype.
            teacher_logits: [B, C], same classes in the same order; it receives no gradient. A logit of -inf masks a
                class: where the teacher's probability is 0 the class adds nothing.
        Raises:
            ValueError: the shapes differ (KD needs one label set), or a dimension is empty; on the CPU also a row that
                holds NaN, inf or nothing but -inf.
        """
        s = checks.tensor("student_logits", student_logits, shape=("B", "C"))
        t = checks.tensor("teacher_logits", teacher_logits, shape=("B", "C"))
        if s.shape != t.shape:
            raise ValueError(
                f"teacher_logits: expected the shape of student_logits {list(s.shape)}, got {list(t.shape)}; "
                "KD needs both networks to score the same classes"
            )
        checks.same_device(student_logits=s, teacher_logits=t)
        for name, logits in (("student_logits", s), ("teacher_logits", t)):
            _refuse_undefined(name, logits.detach())
        dtype = torch.promote_types(torch.promote_types(s.dtype, t.dtype), torch.float32)
        log_s = F.log_softmax(s.to(dtype) / self.temperature, dim=1)
        log_t = F.log_softmax(t.detach().to(dtype) / self.temperature, dim=1)
        p = log_t.exp()
        divergence = p * torch.where(p > 0, log_t - log_s, 0)  # 0 * (-inf + inf) is 0 here
        return divergence.sum() / len(s) * self.temperature**2

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


def _refuse_undefined(name: str, logits: Tensor) -> None:
    """A ValueError for the first row, on the CPU, whose softmax is not defined."""
    if logits.device.type != "cpu" or torch.compiler.is_compiling() or transforms_active():
        return
    peak = logits.amax(1)  # NaN if any is
    if not torch.isfinite(peak).all():
        row = int((~torch.isfinite(peak)).nonzero()[0])
        raise ValueError(f"{name}: row {row} has the largest value {peak[row].item()}; expected a finite one")
