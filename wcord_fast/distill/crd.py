"""Contrastive representation distillation (Tian et al., ICLR 2020) with weight 0.8."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from ..nn.crd import NAMES, CRDLoss
from ..nn.options import ContrastOptions, count_or_none, option
from ..ops import checks
from .base import Batch, Loss, Method, Options, Outputs, Pair, check_ranges
from .schedule import module_z, ramp_factor, ramp_steps, require_ramp

PUBLISHED_NEGATIVES = ContrastOptions.num_negatives
LOSS_OPTIONS = [f.name for f in fields(ContrastOptions)]


@dataclass
class CRDOptions(ContrastOptions, Options):
    """Options of "crd".

    Attributes:
        weight: weight of the CRD loss.
        num_negatives: negatives per anchor, or "all"; default min(16384, training images // 3).
        z: normalising constant: from the "first" batch, a moving average ("ema"), or from the first batch and again
            from the first one after the "ramp".
        ramp: epochs over which the weight grows from 0; below 1, the fraction of all epochs; 0: the weight is constant.
        init_banks: before training, fill the banks with the features of both networks by one pass over the training
            images without augmentation; otherwise banks start as noise.
    """

    weight: float = option(0.8, checks.non_negative)
    num_negatives: int | Literal["all"] | None = option(None, count_or_none)  # type: ignore[assignment]
    z: Literal["first", "ema", "ramp"] = "first"  # type: ignore[assignment]
    ramp: float = option(0.0, checks.non_negative, later=True)
    init_banks: bool = option(False, later=True)

    def __post_init__(self) -> None:
        check_ranges(self)
        super().__post_init__()
        require_ramp(self.z, "ramp", self.ramp)


class CRD(Method):
    """CE + weight * CRD on the penultimate features."""

    features_used = 1
    _factor: Tensor | None

    def __init__(self, pair: Pair, options: CRDOptions) -> None:
        super().__init__(pair, options)
        self.weight = options.weight
        self.fills_banks, self.scheduled = options.init_banks, options.ramp > 0
        self._ramp, self._z = options.ramp, options.z
        factor = torch.ones(()) if self.scheduled else None  # a CUDA graph reads its current value
        self.register_buffer("_factor", factor, persistent=False)
        self.crd = CRDLoss(
            pair.student_width,
            pair.teacher_width,
            pair.num_data,
            labels=pair.labels,
            seed=pair.seed,
            **{NAMES.get(name, name): value for name, value in loss_options(options, LOSS_OPTIONS, pair).items()},
        )

    def own_loss(self, student: Outputs, teacher: Outputs, batch: Batch) -> Loss:
        crd: Tensor = self.crd(student.feats[-1], teacher.feats[-1], batch.index)
        weight = self.weight if self._factor is None else self.weight * self._factor
        return Loss(weight * crd, {"crd": crd.detach()})

    def fill_banks(self, student: Outputs, teacher: Outputs, index: Tensor) -> None:
        self.crd.init_banks(student.feats[-1], teacher.feats[-1], index)

    @torch.no_grad()
    def at_step(self, done: int, per_epoch: int, epochs: int) -> None:
        steps = ramp_steps(self._ramp, per_epoch, epochs)
        if self._factor is not None and done <= steps:
            self._factor.fill_(ramp_factor(done, steps))
        if done == steps and self._z == "ramp":
            self.crd.reset_z()


def loss_options(options: Any, names: Iterable[str], pair: Pair) -> dict[str, Any]:
    """The options `names` of a section, as the loss module takes them."""
    result = {name: getattr(options, name) for name in names}
    if result["num_negatives"] is None:  # the published number, but at most a third of the training set
        result["num_negatives"] = max(1, min(PUBLISHED_NEGATIVES, pair.num_data // 3))
    return result | {"z": module_z(options.z)}
