"""Wasserstein contrastive representation distillation (CVPR 2021, eq. 14): CE - l1 * GCKT + l2 * LCKT."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from torch import Tensor

from ..nn.options import WCoRDLossOptions, count_or_none, option
from ..nn.wcord import WCoRDLoss
from ..ops import checks
from .base import Batch, Loss, Method, Options, Outputs, Pair, check_ranges
from .crd import loss_options
from .presets import Presets
from .schedule import ramp_factor, ramp_steps, require_ramp

LOSS_OPTIONS = [f.name for f in fields(WCoRDLossOptions)]
TRANSPORT = {"ot_solver", "ot_eps", "ot_iters", "lckt_rho"}
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},  # the defaults
    "tuned": {
        "init_banks": True,
        "ramp_gckt": 0.25,
        "z": "ramp",
        "lambda_lckt": 10.0,
        "lckt_pairs": "only",
        "lckt_features": "auto",
        "lckt_center": "batch",
    },
}


@dataclass
class WCoRDOptions(Presets, WCoRDLossOptions, Options):
    """Options of "wcord", "gckt" (lambda_lckt 0) and "lckt" (lambda_gckt 0).

    Attributes:
        preset: values of the options that are not given: "paper" (the defaults) or "tuned" (the best that was measured
            on small budgets; given without a ramp, z is "first"); default: "paper", from which "tuned" is not separated
            on every budget that was measured.
        num_negatives: negatives per anchor, or "all"; default min(16384, training images // 3).
        z: normalising constant: from the "first" batch, a moving average ("ema"), or from the first batch and again
            from the first one after the "ramp" of the global term.
        ramp_gckt: epochs over which the global term's weight grows from 0; below 1, the fraction of all epochs; 0: the
            weight is constant.
        ramp_lckt: epochs over which the local term's weight grows, as ramp_gckt.
        init_banks: before training, fill the banks with the features of both networks by one pass over the training
            images without augmentation; otherwise banks start as noise.
    """

    presets: ClassVar = PRESETS

    preset: Literal["paper", "tuned"] | None = option(None, identifies=False)
    num_negatives: int | Literal["all"] | None = option(None, count_or_none)  # type: ignore[assignment]
    z: Literal["first", "ema", "ramp"] = "first"  # type: ignore[assignment]
    ramp_gckt: float = option(0.0, checks.non_negative, later=True)
    ramp_lckt: float = option(0.0, checks.non_negative, later=True)
    init_banks: bool = option(False, later=True)

    def __post_init__(self) -> None:
        given: set[str] = getattr(self, "_given", set())
        filled = self.fill()
        if "z" in filled and not self.ramp_gckt:
            self.z = "first"  # the preset's "ramp" comes after a ramp
        try:
            check_ranges(self)
            super().__post_init__()
            require_ramp(self.z, "ramp_gckt", self.ramp_gckt)
        except ValueError as error:
            name = str(error).partition(":")[0]
            source = f"; {name}={filled[name]!r} is from preset={self.preset!r}" if name in filled else ""
            raise ValueError(f"{error}{source}") from None
        idle = sorted(given & TRANSPORT) if filled.get("lckt_pairs") == "only" else []
        if idle:
            raise ValueError(
                f"{idle[0]}: expected lckt_pairs 'none' or 'prior' beside it, or preset 'paper'; "
                f"lckt_pairs='only' is from preset={self.preset!r} and computes no transport"
            )


class WCoRD(Method):
    """CE - lambda_gckt * GCKT + lambda_lckt * LCKT on the penultimate features."""

    features_used = 1

    def __init__(self, pair: Pair, options: WCoRDOptions) -> None:
        super().__init__(pair, options)
        if options.lckt_features == "raw" and pair.student_width != pair.teacher_width:
            raise ValueError(
                "lckt_features: 'raw' compares the features themselves, which needs equal widths, but the "
                f"student has {pair.student_width} and the teacher {pair.teacher_width}; use 'mapped' or 'embed'"
            )
        if options.lambda_gckt == options.lambda_lckt == 0:
            raise ValueError("lambda_gckt: expected a weight above 0 here or for lambda_lckt; use 'ce' for neither")
        self.wcord = WCoRDLoss(
            pair.student_width,
            pair.teacher_width,
            pair.num_data,
            labels=pair.labels,
            seed=pair.seed,
            **loss_options(options, LOSS_OPTIONS, pair),
        )
        self.fills_banks = options.init_banks and self.wcord.contrast is not None
        self._ramps = {"gckt": options.ramp_gckt, "lckt": options.ramp_lckt}
        self._z = options.z
        self.scheduled = any(self._ramps.values())
        if self.scheduled:
            self.wcord.ramp()

    def fill_banks(self, student: Outputs, teacher: Outputs, index: Tensor) -> None:
        self.wcord.init_banks(student.feats[-1], teacher.feats[-1], index)

    def at_step(self, done: int, per_epoch: int, epochs: int) -> None:
        steps = {name: ramp_steps(ramp, per_epoch, epochs) for name, ramp in self._ramps.items()}
        if done <= max(steps.values()):
            self.wcord.ramp(**{name: ramp_factor(done, length) for name, length in steps.items()})
        if done == steps["gckt"] and self._z == "ramp":
            self.wcord.reset_z()

    def probe(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        if not self.wcord.lambda_lckt:
            return {}
        return {"lckt_on_pairs": self.wcord.lckt_on_pairs(student.feats[-1], teacher.feats[-1], batch.index)}

    def own_loss(self, student: Outputs, teacher: Outputs, batch: Batch) -> Loss:
        value: Tensor = self.wcord(student.feats[-1], teacher.feats[-1], batch.index)
        terms = {name: term.clone() for name, term in self.wcord.terms.items() if name in self._weighted_names()}
        return Loss(value, terms)

    def own_parts(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = self.wcord.weighted_terms(student.feats[-1], teacher.feats[-1], batch.index)
        return {name: terms[name] for name in self._weighted_names()}

    def _weighted_names(self) -> tuple[str, ...]:
        weights = {"gckt": self.wcord.lambda_gckt, "lckt": self.wcord.lambda_lckt}
        return tuple(name for name, weight in weights.items() if weight)
