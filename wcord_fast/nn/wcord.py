"""WCoRDLoss: the global (GCKT) and local (LCKT) terms of Wasserstein contrastive representation distillation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..distributed.ranks import gather_rows, lower, ranks, sizes_of
from ..functional.ot import ot_cost
from ..functional.sharded import Joined, join
from ..ops import checks
from ..ops.first_order import first_order
from .contrast import Contrast, ContrastiveLoss, check_options
from .embed import NORMS, Embed, autocast_off
from .sampler import check_count, exclusion_rule

CRITICS = ("nce_sn", "nce", "dual")
SCOPES = ("rank", "global")


class WCoRDLoss(ContrastiveLoss):
    """- lambda1 * GCKT + lambda2 * LCKT (Chen et al., WCoRD, CVPR 2021, eq. 14 without its cross-entropy).

    GCKT is a critic's score of congruent (same image) against incongruent pairs; LCKT is the optimal-transport cost
    between student and teacher features of the batch, plan detached, teacher side detached.

    Args:
        s_dim, t_dim: widths of the student's and the teacher's penultimate features.
        n_data: N, the number of training images.
        feat_dim: D, width of the embeddings.
        critic: "nce_sn" (CRD's NCE on spectrally normalised embeddings), "nce" (CRD's NCE) or "dual" (eq. 10:
            dual_scale * (score of the positive - neg_weight * mean score of the negatives), spectrally normalised).
        num_negatives: K from the bank, or "all".
        temperature: tau of the NCE critics.
        momentum: momentum of the banks.
        lambda_gckt, lambda_lckt: weights; a zero turns the term off. With lambda_gckt = 0 the teacher's embedding is a
            frozen random projection.
        neg_weight: weight of the mean negative score under "dual"; "M" multiplies by the number of negatives, eq. (11)
            to the letter: unbounded under a shift of the critic and maximised by collapse. Degenerate, never needed.
        dual_scale: factor of the dual objective.
        negatives: "bank" or, for "dual" only, "batch" (its default: positives and other-class negatives of the same
            batch, the other side detached) and "bank_negatives" (batch positives, bank negatives). Under "dual" the two
            bank forms compare rows of different age, can be told apart by age alone, and drift to collapse.
        embed_norm: "sphere" or "ball", see `Embed`.
        lckt_features: "embed" (the critic's embeddings) or "raw" (the features, equal widths only).
        lckt_reduction: "mean" (a plan of mass 1) or "sum" (times the batch size). With mass 1 and weight 0.05 its
            gradient is below 1 % of the cross-entropy's.
        lckt_trains_embed: False keeps LCKT's gradient from the embedding's weights (Algorithm 1's student-only step).
        ot_solver, ot_eps, ot_iters, ot_cost: see `functional.ot_cost`.
        ot_scope: "rank", the process's own batch, or "global", the batch of all ranks: the value of one process
            with the joined batch, on every rank, and the gradient of this rank's rows times B / B_rank, for DDP to
            average.
        labels, exclude, replacement, z, bank_dtype, plan, backend, seed, shard: as in `CRDLoss`.

    `terms` holds the detached "gckt" and "lckt" of the last call. Steps and eval mode are as in `CRDLoss`. The
    teacher's features are detached (Algorithm 1).
    """

    _terms: Tensor
    _group: Tensor
    beside = "_terms"

    def __init__(
        self,
        s_dim: int,
        t_dim: int,
        n_data: int,
        *,
        feat_dim: int = 128,
        critic: str = "nce_sn",
        num_negatives: int | str = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        lambda_gckt: float = 0.8,
        lambda_lckt: float = 0.05,
        neg_weight: float | str = 1,
        dual_scale: float = 4.0,
        negatives: str | None = None,
        embed_norm: str = "sphere",
        lckt_features: str = "embed",
        lckt_reduction: str = "mean",
        lckt_trains_embed: bool = True,
        ot_solver: str = "ipot",
        ot_eps: float = 0.5,
        ot_iters: int = 50,
        ot_cost: str = "cosine",
        ot_scope: str = "rank",
        labels: Any = None,
        exclude: str | None = None,
        replacement: bool | None = None,
        z: str = "first",
        bank_dtype: torch.dtype = torch.float32,
        plan: str = "auto",
        backend: str = "auto",
        seed: int | None = None,
        shard: str | None = None,
    ):
        super().__init__()
        self.n_data = checks.integer("n_data", n_data, least=1)
        checks.integer("s_dim", s_dim, least=1)
        checks.integer("t_dim", t_dim, least=1)
        check_count("num_negatives", num_negatives)
        check_options(temperature, momentum, replacement, z, bank_dtype, plan, backend, seed)
        exclude_rule, classes = exclusion_rule(exclude, labels, self.n_data)
        self.critic = checks.choice("critic", critic, CRITICS)
        self.lambda_gckt = checks.non_negative("lambda_gckt", lambda_gckt)
        self.lambda_lckt = checks.non_negative("lambda_lckt", lambda_lckt)
        if isinstance(neg_weight, str) and neg_weight != "M":
            raise ValueError(f"neg_weight: expected a number or 'M', got {neg_weight!r}")
        self.neg_weight = neg_weight if isinstance(neg_weight, str) else checks.non_negative("neg_weight", neg_weight)
        self.dual_scale = checks.positive("dual_scale", dual_scale)
        forms = ("batch", "bank", "bank_negatives")
        self.negatives = checks.choice("negatives", negatives or forms[critic != "dual"], forms)
        if self.negatives != "bank" and critic != "dual":
            raise ValueError(f"negatives: {negatives!r} needs critic='dual', got critic={critic!r}")
        checks.choice("embed_norm", embed_norm, NORMS)
        self.lckt_features = checks.choice("lckt_features", lckt_features, ("embed", "raw"))
        if lckt_features == "raw" and s_dim != t_dim:
            raise ValueError(f"lckt_features='raw' needs equal widths, got s_dim={s_dim} and t_dim={t_dim}")
        self.lckt_reduction = checks.choice("lckt_reduction", lckt_reduction, ("mean", "sum"))
        self.lckt_trains_embed = checks.boolean("lckt_trains_embed", lckt_trains_embed)
        self.ot = {
            "cost": checks.choice("ot_cost", ot_cost, ("cosine", "sqeuclidean")),
            "solver": checks.choice("ot_solver", ot_solver, ("ipot", "sinkhorn")),
            "iters": checks.integer("ot_iters", ot_iters, least=1, below=2**31),
            "eps": checks.divisor("ot_eps", ot_eps, dividend=ot_iters if ot_solver == "ipot" else 1),
            "backend": backend,
        }
        self.ot_scope = checks.choice("ot_scope", ot_scope, SCOPES)
        checks.choice("shard", shard, (None, "rank"))
        spectral = critic != "nce"
        self.embed_s = Embed(s_dim, feat_dim, spectral=spectral, norm=embed_norm)
        self.embed_t = Embed(t_dim, feat_dim, spectral=spectral, norm=embed_norm)
        if self.lambda_gckt == 0:
            self.embed_t.requires_grad_(False).eval()
        self.contrast = None
        if self.negatives == "batch":  # anchors of one group are not each other's negatives
            self._exclude = exclude_rule
            group = np.arange(self.n_data) if self._exclude != "class" or classes is None else classes
            self.register_buffer("_group", torch.from_numpy(group), persistent=False)
            self.constants = ("_group",)
        elif self.lambda_gckt:
            self.contrast = Contrast(
                n_data,
                feat_dim,
                k=num_negatives,
                temperature=temperature,
                momentum=momentum,
                labels=labels,
                exclude=exclude,
                replacement=replacement,
                z=z,
                bank_dtype=bank_dtype,
                plan=plan,
                backend=backend,
                seed=seed,
                shard=shard,
            )
        self.register_buffer("_terms", torch.zeros(2), persistent=False)
        self.register_load_state_dict_post_hook(_place_terms)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self._terms.zero_()

    def train(self, mode: bool = True) -> WCoRDLoss:
        """As of any module, but a frozen embed_t stays in eval mode: its spectral norm takes no power iterations."""
        super().train(mode)
        if self.lambda_gckt == 0:
            self.embed_t.eval()
        return self

    @property
    def terms(self) -> dict[str, Tensor]:
        """The detached GCKT and LCKT of the last call, scalars on the device, before their weights."""
        return {"gckt": self._terms[0], "lckt": self._terms[1]}

    @first_order
    def forward(self, f_s: Tensor, f_t: Tensor, idx: Tensor, contrast_idx: Tensor | None = None) -> Tensor:
        """The weighted loss of one batch, a scalar. Arguments as in `CRDLoss.forward`."""
        if contrast_idx is not None and self.negatives == "batch":
            raise ValueError("contrast_idx: negatives='batch' takes no bank rows as negatives; expected None")
        self._check(f_s, f_t, idx, contrast_idx)
        self._refuse_zero_rows(f_s, f_t)
        f_t = f_t.detach()
        frozen_too = not self.lckt_trains_embed and self.lambda_lckt > 0 and self.lckt_features == "embed"
        e_s = self.embed_s(f_s, frozen_too)
        e_s, x = e_s if frozen_too else (e_s, e_s)  # x: what LCKT moves
        e_t = self.embed_t(f_t)
        with autocast_off(f_s.device):
            return self._weighted_terms(f_s, f_t, e_s, x, e_t, idx, contrast_idx)

    def _refuse_zero_rows(self, f_s: Tensor, f_t: Tensor) -> None:
        """Said here, on the CPU, by the names of our arguments and before anything has changed; the op checks again."""
        used = self.lambda_lckt and self.lckt_features == "raw" and self.ot["cost"] == "cosine"
        if not used or f_s.device.type != "cpu" or torch.compiler.is_compiling():
            return
        for name, features in (("f_s", f_s), ("f_t", f_t)):
            zero = (features.detach().flatten(1) == 0).all(1)
            if zero.any():
                raise ValueError(f"{name}: row {int(zero.nonzero()[0])} is zero, which has no direction for the cosine")

    def _weighted_terms(self, f_s, f_t, e_s, x, e_t, idx, contrast_idx) -> Tensor:
        loss = e_s.new_zeros(())
        if self.lambda_lckt:  # first: should it refuse its input, banks and log Z are as they were
            lckt = self._lckt(*((x, e_t) if self.lckt_features == "embed" else (f_s.flatten(1), f_t.flatten(1))))
            self._terms[1].copy_(lckt.detach())
            loss = loss + self.lambda_lckt * lckt
        if self.lambda_gckt:
            anchors = torch.stack((e_s, e_t))  # [2, B, D]
            joined = self._join(anchors, idx)
            gckt = self._gckt(anchors, idx, contrast_idx, joined)
            self._terms[0].copy_(gckt.detach())
            loss = loss - self.lambda_gckt * gckt
            if self.training and self.contrast is not None:
                self.contrast.finish_step(anchors, idx, joined)
        return loss

    def _join(self, anchors: Tensor, idx: Tensor) -> Joined | None:
        """The batch of all ranks, where this call needs it."""
        if self.contrast is not None:
            return self.contrast.join(anchors, idx)
        return join(anchors, idx) if self.training and ranks().world > 1 else None

    def _gckt(self, anchors: Tensor, idx: Tensor, contrast_idx: Tensor | None, joined: Joined | None) -> Tensor:
        if self.contrast is None:
            positive, negative, count = self._batch_scores(anchors, idx, joined)
        elif self.critic != "dual":
            return -self.contrast.nce(anchors, idx, contrast_idx, joined).mean(1).sum()
        else:
            positive, negative = self.contrast.scores(anchors, idx, contrast_idx, joined)
            if self.negatives == "bank_negatives":
                positive = (anchors * anchors.flip(0).detach()).sum(-1)
            count = self.contrast.num_negatives(idx, contrast_idx)
        factor = count if isinstance(self.neg_weight, str) else self.neg_weight
        return self.dual_scale * (positive - factor * negative).mean(1).sum()

    def _batch_scores(self, anchors: Tensor, idx: Tensor, joined: Joined | None) -> tuple[Tensor, Tensor, Tensor]:
        """Positive and mean negative scores [2, B] within the batch (of all ranks), and the number of negatives [B].

        An anchor whose class fills the batch has no negative and takes no part: both of its scores are 0.
        """
        others, index = (anchors.detach(), idx) if joined is None else (joined.anchors, joined.index)
        score = anchors @ others.flip(0).transpose(1, 2)  # [2, B, B of all ranks]
        inside = (idx >= 0) & (idx < self.n_data)  # on the CPU all are; elsewhere the others' losses are NaN
        if idx.device.type != "cpu" and not torch.compiler.is_compiling():
            checks.rows_in_range("idx", idx, self.n_data)
        group, among = (self._group[i.long().clamp(0, self.n_data - 1)] for i in (idx, index))
        eligible = group[:, None] != among[None]
        if self._exclude == "none":
            eligible = torch.ones_like(eligible)
        count = eligible.sum(1)  # [B]
        negative = (score * eligible).sum(2) / count.clamp_min(1)
        first = 0 if joined is None else joined.own.start
        positive = score.diagonal(first, dim1=1, dim2=2) * (count > 0)
        return torch.where(inside, positive, torch.nan), negative, count

    def _lckt(self, x: Tensor, y: Tensor) -> Tensor:
        dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
        x, y = x.to(dtype), y.detach().to(dtype)
        if self.ot_scope == "global" and ranks().world > 1:
            x, y = _of_all_ranks(x, y)
        value = ot_cost(x, y, **self.ot)
        return value * len(x) if self.lckt_reduction == "sum" else value

    def extra_repr(self) -> str:
        return (
            f"critic={self.critic!r}, lambda_gckt={self.lambda_gckt}, lambda_lckt={self.lambda_lckt}, "
            f"negatives={self.negatives!r}, lckt_features={self.lckt_features!r}, "
            f"lckt_reduction={self.lckt_reduction!r}, ot_scope={self.ot_scope!r}"
        )


def _place_terms(module: WCoRDLoss, _keys) -> None:
    """`_terms` is in no state dict, so `assign` leaves it on meta."""
    if module._terms.is_meta and not module.embed_s.linear.bias.is_meta:
        module._terms = torch.zeros(2, device=module.embed_s.linear.bias.device)
        for name in module.constants:
            setattr(module, name, module.moved(getattr(module, name)))


def _of_all_ranks(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """x and y of all ranks, joined in rank order; the gradient of this rank's rows of x is taken times B / B_rank."""
    sizes = sizes_of(len(x), x.device)
    others, y = gather_rows([x, y], sizes)
    first = lower(sizes)
    own = x.view_as(x)
    if own.requires_grad:
        own.register_hook(lambda grad: grad * (len(y) / len(x)))
    return torch.cat((others[:first], own, others[first + len(x) :])), y
