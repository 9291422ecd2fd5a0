"""Contrastive representation distillation (Tian et al., ICLR 2020), weight .8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..nn.crd import CRDLoss
from ..ops import checks
from .base import Batch, Loss, Method, Options, Outputs, Pair, later
from .schedule import check_ramp, check_z, module_z, ramp_factor, ramp_steps

PUBLISHED_NEGATIVES = 16384


@dataclass
class CRDOptions(Options):
    """Options of "crd".

    Attributes:
        weight: weight of the CRD loss.
        feat_dim: width of the embeddings.
        num_negatives: negatives per anchor, or "all"; default min(16384, training images // 3).
        temperature: of the scores.
        momentum: share of the old row when a bank row is updated.
        exclude: which rows are no negatives: "class", "self" or "none"; default: class when labels are known.
        replacement: draw with replacement; default: only when there are fewer rows than negatives.
        z: normalising constant from the "first" batch, a moving average ("ema"), or from the first batch and once more
            from the first one after the "ramp".
        shard: "rank": with several processes, each holds a part of the banks' rows; default: each holds all.
        ramp: the weight grows from 0 over so many epochs, or below 1 over that part of all epochs; 0: it is constant.
        init_banks: fill the banks with the features of both networks before training, by one pass over the training
            images as they are; without it they begin as noise.
    """

    weight: float = 0.8
    feat_dim: int = 128
    num_negatives: int | Literal["all"] | None = None
    temperature: float = 0.07
    momentum: float = 0.5
    exclude: Literal["class", "self", "none"] | None = None
    replacement: bool | None = None
    z: Literal["first", "ema", "ramp"] = "first"
    shard: Literal["rank"] | None = None
    ramp: float = later(0.0)
    init_banks: bool = later(False)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.non_negative("weight", self.weight)
        check_contrast(self)
        check_ramp("ramp", self.ramp)
        check_z(self.z, "ramp", self.ramp)


class CRD(Method):
    """CE + weight * CRD on the penultimate features."""

    _factor: Tensor | None

    def __init__(self, pair: Pair, options: CRDOptions) -> None:
        super().__init__(pair, options)
        self.weight = options.weight
        self.fills_banks, self.scheduled = options.init_banks, options.ramp > 0
        self._ramp, self._z = options.ramp, options.z
        factor = torch.ones(()) if self.scheduled else None  # a tensor, which a CUDA graph reads anew
        self.register_buffer("_factor", factor, persistent=False)
        self.crd = CRDLoss(
            pair.student_width,
            pair.teacher_width,
            pair.num_data,
            feat_dim=options.feat_dim,
            nce_k=negatives_for(options.num_negatives, pair.num_data),
            nce_t=options.temperature,
            nce_m=options.momentum,
            labels=pair.labels,
            exclude=options.exclude,
            replacement=options.replacement,
            z=module_z(options.z),
            shard=options.shard,
            seed=pair.seed,
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


def negatives_for(asked: int | str | None, num_data: int) -> int | str:
    """K: what was asked for, or the published 16384 capped at a third of the training set."""
    return max(1, min(PUBLISHED_NEGATIVES, num_data // 3)) if asked is None else asked


def check_contrast(options) -> None:
    """Check the options that CRD and WCoRD share."""
    checks.integer("feat_dim", options.feat_dim, least=1)
    if options.num_negatives not in (None, "all"):
        checks.integer("num_negatives", options.num_negatives, least=1)
    checks.positive("temperature", options.temperature)
    checks.fraction("momentum", options.momentum)
    checks.choice("exclude", options.exclude, (None, "class", "self", "none"))
    checks.choice("replacement", options.replacement, (None, True, False))
    checks.boolean("init_banks", options.init_banks)
    checks.choice("shard", options.shard, (None, "rank"))
