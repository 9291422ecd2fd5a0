"""Knowledge distillation: the divergence of softened teacher and student logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import checks
from ..ops.first_order import transforms_active

CLASS_DIM = {2: 1, 3: -1, 4: 1}  # number of dimensions -> the class dimension


def kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 4.0,
    mask: Tensor | None = None,
    dim: int | None = None,
) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), mean over the positions: a scalar.

    In fp32 (fp64 for fp64 logits), under autocast too.

    Args:
        student_logits: [B, C], tokens' [B, T, V] or maps' [B, C, H, W], any float dtype; other shapes with `dim`.
        teacher_logits: shape and class order of `student_logits`; they receive no gradient. A logit of -inf masks a
            class: where the teacher's probability is 0 the class adds nothing. A student logit of -inf where the
            teacher's probability is above 0 gives a loss of inf.
        temperature: T > 0, such that T^2 neither overflows nor vanishes in fp32.
        mask: bool, the logits' shape without the class dimension ([B], [B, T], [B, H, W]): the positions that count.
            The mean is over these, 0 if there are none; logits at other positions, even NaN, have no effect.
        dim: the class dimension, not the first; default: the last of [B, T, V], else dimension 1.
    Raises:
        TypeError: logits that are not float tensors, a mask that is not bool, a temperature that is no number, a `dim`
            that is no int.
        ValueError: the shapes differ (KD needs one label set), or a dimension is empty; on the CPU also NaN, inf or
            nothing but -inf at a position that counts.
    """
    dim = None if dim is None else checks.integer("dim", dim, least=-8)
    return _kd_loss(student_logits, teacher_logits, check_temperature(temperature), mask, dim)


def check_temperature(temperature: float) -> float:
    """`temperature` as a float whose square float32 can hold."""
    value = checks.positive("temperature", temperature)
    limits = torch.finfo(torch.float32)
    if not limits.tiny**0.5 <= value <= limits.max**0.5:
        raise ValueError(f"temperature: expected a number whose square is finite in float32, got {temperature:g}")
    return value


def _kd_loss(s: Tensor, t: Tensor, temperature: float, mask: Tensor | None, dim: int | None) -> Tensor:
    """`kd_loss` with a checked temperature."""
    dim = _check_logits(s, t, dim)
    devices = {"student_logits": s, "teacher_logits": t}
    if mask is not None:
        checks.tensor("mask", mask, shape=(*s.shape[:dim], *s.shape[dim + 1 :]), dtypes=(torch.bool,))
        devices["mask"] = mask
    checks.same_device(**devices)
    for name, logits in (("student_logits", s), ("teacher_logits", t)):
        _refuse_undefined(name, logits.detach(), mask, dim)
    if mask is not None:  # masked values must not reach the gradient: 0 * NaN is NaN
        counted = mask.unsqueeze(dim)
        s, t = torch.where(counted, s, 0), torch.where(counted, t, 0)
    dtype = torch.promote_types(torch.promote_types(s.dtype, t.dtype), torch.float32)
    log_s = F.log_softmax(s.to(dtype) / temperature, dim=dim)
    log_t = F.log_softmax(t.detach().to(dtype) / temperature, dim=dim)
    p = log_t.exp()
    divergence = p * torch.where(p > 0, log_t - log_s, 0)  # 0 * (-inf + inf) is 0 here
    if mask is None:
        return divergence.sum() / (s.numel() // s.shape[dim]) * temperature**2
    return (divergence * counted).sum() / mask.sum().clamp_min(1) * temperature**2


def _check_logits(s: Tensor, t: Tensor, dim: int | None) -> int:
    """Check the logits; return the class dimension, counted from the front."""
    for name, logits in (("student_logits", s), ("teacher_logits", t)):
        if isinstance(logits, Tensor) and (dim is not None or logits.dim() in (3, 4)) and logits.dim() > 1:
            checks.tensor(name, logits, shape=("B", *("n",) * (logits.dim() - 1)))
        else:
            checks.tensor(name, logits, shape=("B", "C"))
    if s.shape != t.shape:
        raise ValueError(
            f"teacher_logits: expected the shape of student_logits {list(s.shape)}, got {list(t.shape)}; "
            "KD needs both networks to score the same classes"
        )
    class_dim = CLASS_DIM[s.dim()] if dim is None else dim
    if not (1 <= class_dim < s.dim() or -s.dim() < class_dim <= -1):
        raise ValueError(f"dim: expected the class dimension of {list(s.shape)}, 1 to {s.dim() - 1}, got {dim}")
    return class_dim % s.dim()


def _refuse_undefined(name: str, logits: Tensor, mask: Tensor | None, dim: int) -> None:
    """ValueError, on the CPU, for the first position that counts and whose softmax is not defined."""
    if logits.device.type != "cpu" or torch.compiler.is_compiling() or transforms_active():
        return
    peak = logits.amax(dim)  # NaN if any value is
    bad = ~torch.isfinite(peak)
    if mask is not None:
        bad &= mask
    if bad.any():
        position = tuple(bad.nonzero()[0].tolist())
        location = f"row {position[0]}" if len(position) == 1 else f"position {list(position)}"
        raise ValueError(f"{name}: {location} has the largest value {peak[position].item()}; expected a finite one")
