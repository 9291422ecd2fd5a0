"""Wasserstein contrastive representation distillation (CVPR 2021, eq. 14): CE - l1 * GCKT + l2 * LCKT."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from torch import Tensor

from ..functional.ot import DEFAULT_RHO
from ..nn.local_term import CENTERS, FEATURES, PAIRS, PAIRS_BY
from ..nn.wcord import WCoRDLoss
from ..ops import checks
from .base import Batch, Loss, Method, Options, Outputs, Pair, later
from .crd import check_contrast, negatives_for
from .schedule import check_ramp, check_z, module_z, ramp_factor, ramp_steps


@dataclass
class WCoRDOptions(Options):
    """Options of "wcord", "gckt" (lambda_lckt 0) and "lckt" (lambda_gckt 0).

    Attributes:
        lambda_gckt: weight of the global contrastive term (lambda1).
        lambda_lckt: weight of the local transport term (lambda2).
        critic: the global term's objective.
        num_negatives: negatives per anchor, or "all"; default min(16384, training images // 3).
        feat_dim: width of the embeddings.
        temperature: of the scores of the nce critics.
        momentum: share of the old row when a bank row is updated.
        negatives: rows of the "bank", of the same "batch", or batch positives with "bank_negatives" (the last
            two for the dual critic only); default: batch for the dual critic, else bank.
        neg_weight: weight of the mean negative score of the dual critic: 1 (eq. 10) or "M" (eq. 11).
        dual_scale: scale of the dual critic.
        embed_norm: embeddings on the unit "sphere" or inside the unit "ball".
        lckt_features: transport between "embed"dings, "raw" features of equal width, or the teacher's and the student's
            features "mapped" to its width by a trained linear map.
        lckt_reduction: transport cost of a plan of mass 1 ("mean") or of mass batch size ("sum").
        lckt_trains_embed: let the local term train the student's embedding too.
        ot_solver: "ipot" (the paper's) or "sinkhorn".
        ot_eps: its regularisation.
        ot_iters: its iterations.
        ot_cost: ground cost between features.
        exclude: which rows are no negatives: "class", "self" or "none"; default: class when labels are known.
        replacement: draw with replacement; default: only when there are fewer rows than negatives.
        z: normalising constant from the "first" batch, a moving average ("ema"), or from the first batch and once more
            from the first one after the "ramp" of the global term.
        ot_scope: with several processes, transport within each "rank"'s part of the batch or in the "global" batch.
        shard: "rank": with several processes, each holds a part of the banks' rows; default: each holds all.
        lckt_pairs: "none" (the paper's: the plan does not know which rows are of one image), "prior" (it starts from a
            reference plan that does) or "only" (no plan: the mean cost of the pairs).
        lckt_rho: mass of that reference plan on the pairs, below 1.
        lckt_pairs_by: what is a pair under "prior": rows of one "image", or of one "class".
        lckt_center: "batch" takes the mean over the batch off both sides first.
        ramp_gckt: the global term's weight grows from 0 over so many epochs, or below 1 over that part of all epochs;
            0: it is constant.
        ramp_lckt: the same for the local term.
        init_banks: fill the banks with the features of both networks before training, by one pass over the training
            images as they are; without it they begin as noise.
    """

    lambda_gckt: float = 0.8
    lambda_lckt: float = 0.05
    critic: Literal["nce_sn", "nce", "dual"] = "nce_sn"
    num_negatives: int | Literal["all"] | None = None
    feat_dim: int = 128
    temperature: float = 0.07
    momentum: float = 0.5
    negatives: Literal["bank", "batch", "bank_negatives"] | None = None
    neg_weight: float | Literal["M"] = 1.0
    dual_scale: float = 4.0
    embed_norm: Literal["sphere", "ball"] = "sphere"
    lckt_features: Literal["embed", "raw", "mapped"] = "embed"
    lckt_reduction: Literal["mean", "sum"] = "mean"
    lckt_trains_embed: bool = True
    ot_solver: Literal["ipot", "sinkhorn"] = "ipot"
    ot_eps: float = 0.5
    ot_iters: int = 50
    ot_cost: Literal["cosine", "sqeuclidean"] = "cosine"
    exclude: Literal["class", "self", "none"] | None = None
    replacement: bool | None = None
    z: Literal["first", "ema", "ramp"] = "first"
    ot_scope: Literal["rank", "global"] = "rank"
    shard: Literal["rank"] | None = None
    lckt_pairs: Literal["none", "prior", "only"] = later("none")
    lckt_rho: float = later(DEFAULT_RHO)
    lckt_pairs_by: Literal["image", "class"] = later("image")
    lckt_center: Literal["none", "batch"] = later("none")
    ramp_gckt: float = later(0.0)
    ramp_lckt: float = later(0.0)
    init_banks: bool = later(False)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.non_negative("lambda_gckt", self.lambda_gckt)
        checks.non_negative("lambda_lckt", self.lambda_lckt)
        check_contrast(self)
        if self.neg_weight != "M":
            checks.non_negative("neg_weight", self.neg_weight)
        checks.positive("dual_scale", self.dual_scale)
        checks.positive("ot_eps", self.ot_eps)
        checks.integer("ot_iters", self.ot_iters, least=1)
        checks.choice("critic", self.critic, ("nce_sn", "nce", "dual"))
        checks.choice("negatives", self.negatives, (None, "bank", "batch", "bank_negatives"))
        checks.choice("embed_norm", self.embed_norm, ("sphere", "ball"))
        checks.choice("lckt_features", self.lckt_features, FEATURES)
        checks.choice("lckt_pairs", self.lckt_pairs, PAIRS)
        if not 0 <= checks.number("lckt_rho", self.lckt_rho) < 1:
            raise ValueError(f"lckt_rho: expected a number in [0, 1), got {self.lckt_rho}")
        checks.choice("lckt_pairs_by", self.lckt_pairs_by, PAIRS_BY)
        checks.choice("lckt_center", self.lckt_center, CENTERS)
        check_ramp("ramp_gckt", self.ramp_gckt)
        check_ramp("ramp_lckt", self.ramp_lckt)
        check_z(self.z, "ramp_gckt", self.ramp_gckt)
        checks.choice("lckt_reduction", self.lckt_reduction, ("mean", "sum"))
        checks.choice("ot_solver", self.ot_solver, ("ipot", "sinkhorn"))
        checks.choice("ot_cost", self.ot_cost, ("cosine", "sqeuclidean"))
        checks.choice("ot_scope", self.ot_scope, ("rank", "global"))


DRIVER = {"ramp_gckt", "ramp_lckt", "init_banks"}  # options that the training loop follows, not the loss


class WCoRD(Method):
    """CE - lambda_gckt * GCKT + lambda_lckt * LCKT on the penultimate features."""

    def __init__(self, pair: Pair, options: WCoRDOptions) -> None:
        super().__init__(pair, options)
        if options.lckt_features == "raw" and pair.student_width != pair.teacher_width:
            raise ValueError(
                "lckt_features: 'raw' compares the features themselves, which needs equal widths, but the "
                f"student has {pair.student_width} and the teacher {pair.teacher_width}; use 'mapped' or 'embed'"
            )
        if options.lambda_gckt == options.lambda_lckt == 0:
            raise ValueError("lambda_gckt: expected a weight above 0 here or for lambda_lckt; use 'ce' for neither")
        own = {f.name for f in fields(options)} - {f.name for f in fields(Options)} - DRIVER
        arguments = {name: getattr(options, name) for name in own}
        arguments["z"] = module_z(options.z)
        arguments["num_negatives"] = negatives_for(options.num_negatives, pair.num_data)
        self.wcord = WCoRDLoss(
            pair.student_width,
            pair.teacher_width,
            pair.num_data,
            labels=pair.labels,
            seed=pair.seed,
            **arguments,
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
        return Loss(value, {name: self.wcord.terms[name] for name in self._weighted()})

    def own_parts(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = self.wcord.weighted_terms(student.feats[-1], teacher.feats[-1], batch.index)
        return {name: terms[name] for name in self._weighted()}

    def _weighted(self) -> tuple[str, ...]:
        weights = {"gckt": self.wcord.lambda_gckt, "lckt": self.wcord.lambda_lckt}
        return tuple(name for name, weight in weights.items() if weight)
