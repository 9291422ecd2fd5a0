"""Decoupled knowledge distillation (Zhao, Cui, Song, Qiu, Liang: CVPR 2022, eq. 7).

KD's divergence is the sum of TCKD, the KL divergence between (p, 1 - p) for the image's class, and (1 - p) times NCKD,
the divergence among the other classes. DKD weights both separately: alpha * TCKD + beta * NCKD, times T^2, batch mean.
As in the public code (mdistiller), the cross entropy has weight 1 and DKD's weight grows over the first 20 of 240
epochs. There it grows once per epoch, here in each batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..nn.options import option
from ..ops import checks
from ..ops.tensors import wide_dtype
from .base import Batch, Loss, Method, Options, Outputs, Pair, require_one_label_set
from .labelled import labelled_mean
from .schedule import ramp_factor, ramp_steps


@dataclass
class DKDOptions(Options):
    """Options of "dkd".

    Attributes:
        alpha: weight of the target class's term, TCKD.
        beta: weight of the other classes' term, NCKD.
        temperature: temperature of the softmaxes.
        ramp: epochs over which the weight grows from 0; below 1, the fraction of all epochs; 0: the weight is constant.
    """

    alpha: float = option(1.0, checks.non_negative)
    beta: float = option(8.0, checks.non_negative)
    temperature: float = option(4.0, checks.positive)
    ramp: float = option(20 / 240, checks.non_negative)


class DKD(Method):
    """CE + ramp * T^2 (alpha * TCKD + beta * NCKD), on the logits and the labels."""

    _factor: Tensor

    def __init__(self, pair: Pair, options: DKDOptions) -> None:
        super().__init__(pair, options)
        require_one_label_set("dkd:", pair)
        if pair.labels is None:
            raise ValueError("dkd: needs the labels of the training images, got None")
        self.alpha, self.beta, self.temperature = options.alpha, options.beta, options.temperature
        self._ramp, self.scheduled = options.ramp, options.ramp > 0
        # A CUDA graph reads its current value.
        self.register_buffer("_factor", torch.ones((), dtype=wide_dtype()), persistent=False)

    def own_loss(self, student: Outputs, teacher: Outputs, batch: Batch) -> Loss:
        target, others = decoupled(student.logits, teacher.logits.detach(), batch.labels, self.temperature)
        value = self._factor * (self.alpha * target + self.beta * others)
        return Loss(value, {"tckd": target.detach(), "nckd": others.detach()})

    def own_parts(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        target, others = decoupled(student.logits, teacher.logits.detach(), batch.labels, self.temperature)
        return {"tckd": self._factor * self.alpha * target, "nckd": self._factor * self.beta * others}

    @torch.no_grad()
    def at_step(self, done: int, per_epoch: int, epochs: int) -> None:
        steps = ramp_steps(self._ramp, per_epoch, epochs)
        if done <= steps:
            self._factor.fill_(ramp_factor(done, steps))


def decoupled(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Batch means (T^2 TCKD, T^2 NCKD) for logits [B, C] and labels [B], in fp32, or fp64 for fp64 logits.

    Rows with a label below 0 are left out.
    """
    dtype = torch.promote_types(student.dtype, torch.float32)
    s, t = student.to(dtype) / temperature, teacher.to(dtype) / temperature
    is_target = torch.nn.functional.one_hot(labels.clamp_min(0), s.shape[1]).bool()
    log_s, log_t = (torch.stack(_target_and_others(x, is_target)) for x in (s, t))  # [2, B]
    target = labelled_mean((log_t.exp() * (log_t - log_s)).sum(0), labels)
    excluded = torch.finfo(dtype).min / 4  # finite, so that 0 times a difference is 0
    others_s, others_t = (x.masked_fill(is_target, excluded).log_softmax(1) for x in (s, t))
    others = labelled_mean((others_t.exp() * (others_t - others_s)).sum(1), labels)
    return temperature**2 * target, temperature**2 * others


def _target_and_others(logits: Tensor, is_target: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities [B] of the image's class and of all others together."""
    normaliser = logits.logsumexp(1)
    target = logits.masked_fill(~is_target, 0).sum(1)
    return target - normaliser, logits.masked_fill(is_target, -torch.inf).logsumexp(1) - normaliser
