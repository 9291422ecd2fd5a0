"""WCoRDLoss: the global (GCKT) and local (LCKT) terms of Wasserstein contrastive representation distillation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..distributed.ranks import ranks
from ..ops import checks
from ..ops.bank.sharded import Joined, join
from ..ops.first_order import first_order
from ..ops.keywords import keywords_of
from .contrast import Contrast, ContrastiveLoss, check_execution
from .embed import Embed, autocast_off
from .local_term import LocalTerm
from .native_step import native_step, touched
from .options import WCoRDLossOptions
from .sampler import exclusion_rule


class WCoRDLoss(ContrastiveLoss):
    """- lambda1 * GCKT + lambda2 * LCKT (Chen et al., WCoRD, CVPR 2021, eq. 14 without its cross-entropy).

    GCKT is a critic's score of congruent (same image) against incongruent pairs; LCKT is the optimal-transport cost
    between student and teacher features of the batch, plan detached, teacher side detached.

    Args:
        s_dim, t_dim: widths of the student's and the teacher's penultimate features.
        n_data: N, the number of training images.
        labels, bank_dtype, plan, backend, seed: as in `CRDLoss`.
        **options: the fields of `wcord_fast.nn.WCoRDLossOptions`, which explains each.

    The defaults are the paper's. The options and schedules that did best in our measurements are the driver's preset
    "tuned": `distill.create("wcord", preset="tuned", ...)`. In a training loop of one's own `ramp` scales the two
    weights from then on; `reset_z` and `init_banks` see `ContrastiveLoss`.

    `terms` holds the detached "gckt" and "lckt" of the last call. Steps and eval mode are as in `CRDLoss`. The
    teacher's features are detached (Algorithm 1).
    """

    _terms: Tensor
    _factors: Tensor | None
    beside = "_terms"
    scratch = ("_terms",)

    @keywords_of(WCoRDLossOptions)
    def __init__(
        self,
        s_dim: int,
        t_dim: int,
        n_data: int,
        *,
        labels: Any = None,
        bank_dtype: torch.dtype = torch.float32,
        plan: str = "auto",
        backend: str = "auto",
        seed: int | None = None,
        **keywords: Any,
    ):
        super().__init__()
        self.n_data = checks.integer("n_data", n_data, least=1)
        checks.integer("s_dim", s_dim, least=1)
        checks.integer("t_dim", t_dim, least=1)
        options = WCoRDLossOptions(**keywords)
        check_execution(bank_dtype, plan, backend, seed)
        exclude, classes = exclusion_rule(options.exclude, labels, self.n_data)
        self.critic, self.lambda_gckt, self.lambda_lckt = options.critic, options.lambda_gckt, options.lambda_lckt
        self.neg_weight, self.dual_scale = options.neg_weight, options.dual_scale
        self.negatives = options.negatives or ("batch" if self.critic == "dual" else "bank")
        self.lckt_trains_embed = options.lckt_trains_embed
        self.embed_s, self.embed_t = (
            Embed(dim, options.feat_dim, spectral=self.critic != "nce", norm=options.embed_norm)
            for dim in (s_dim, t_dim)
        )
        if self.lambda_gckt == 0:
            self.embed_t.requires_grad_(False).eval()
        self.contrast = None
        if self.negatives == "batch":  # anchors of one group are not each other's negatives
            self._exclude = exclude
            group = np.arange(self.n_data) if exclude != "class" or classes is None else classes
            self.tables["group"] = torch.from_numpy(group)
        elif self.lambda_gckt:
            self.contrast = Contrast(
                n_data, options, labels=labels, bank_dtype=bank_dtype, plan=plan, backend=backend, seed=seed
            )
        self.local = LocalTerm(s_dim, t_dim, options, labelled=classes is not None, backend=backend)
        if options.lckt_pairs_by == "class" and classes is not None:
            self.tables["class"] = torch.from_numpy(classes.astype(np.int64))
        # What no term reads has no gradient, for which DDP would wait.
        if self.lambda_gckt == 0 and options.lckt_features != "embed":
            self.embed_s.requires_grad_(False)
        if self.lambda_lckt == 0:
            self.local.requires_grad_(False)
        self.register_buffer("_terms", torch.zeros(2), persistent=False)
        self.register_buffer("_factors", None, persistent=False)
        self.register_load_state_dict_post_hook(_place_terms)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.local.reset_parameters()
        self._terms.zero_()
        if self._factors is not None:
            self._factors.fill_(1)

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

    @torch.no_grad()
    def ramp(self, *, gckt: float = 1.0, lckt: float = 1.0) -> None:
        """From now on the weights are these times lambda_gckt and lambda_lckt.

        The factors are one tensor on the loss's device, changed in place without synchronisation: a compiled step or a
        CUDA graph that was made after the first call follows them. They are no part of the state dict.
        """
        for name, factor in (("gckt", gckt), ("lckt", lckt)):
            checks.non_negative(name, factor)
        if self._factors is None:
            self._factors = torch.ones_like(self._terms)
        self._factors[0].fill_(gckt)
        self._factors[1].fill_(lckt)

    @torch.no_grad()
    def lckt_on_pairs(self, f_s: Tensor, f_t: Tensor, idx: Tensor) -> Tensor:
        """Mass that LCKT's plan of this batch has on rows of one image (class, with lckt_pairs_by="class"): a scalar.

        It changes no state, and costs what the term costs.
        """
        self._check(f_s, f_t, idx, None)
        e_s, e_t = self.embed_s.frozen(f_s), self.embed_t.frozen(f_t)
        with autocast_off(f_s.device):
            return self.local.on_pairs(*self._local_sides(f_s, f_t, e_s, e_t), self._key(idx))

    @first_order
    def forward(self, f_s: Tensor, f_t: Tensor, idx: Tensor, contrast_idx: Tensor | None = None) -> Tensor:
        """The weighted loss of one batch, a scalar. Arguments as in `CRDLoss.forward`."""
        if contrast_idx is not None and self.negatives == "batch":
            raise ValueError("contrast_idx: negatives='batch' takes no bank rows as negatives; expected None")
        native = self._native(f_s, f_t, idx, contrast_idx)
        if native is not None:
            return native
        terms = self._weighted_terms(f_s, f_t, idx, contrast_idx)
        return sum(terms.values(), start=self._terms.new_zeros(()))

    @first_order
    def weighted_terms(
        self, f_s: Tensor, f_t: Tensor, idx: Tensor, contrast_idx: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The terms of `forward` apart, each with its weight and sign: scalars "gckt" and "lckt" whose sum is the loss.

        A term of weight 0 is not there. In training this is a step, as `forward` is.
        """
        if contrast_idx is not None and self.negatives == "batch":
            raise ValueError("contrast_idx: negatives='batch' takes no bank rows as negatives; expected None")
        return self._weighted_terms(f_s, f_t, idx, contrast_idx)

    def _weighted_terms(self, f_s: Tensor, f_t: Tensor, idx: Tensor, contrast_idx: Tensor | None) -> dict[str, Tensor]:
        self._check(f_s, f_t, idx, contrast_idx)
        self._refuse_zero_rows(f_s, f_t)
        f_t = f_t.detach()
        frozen_too = not self.lckt_trains_embed and self.lambda_lckt > 0 and self.local.features == "embed"
        e_s = self.embed_s(f_s, frozen_too)
        e_s, x = e_s if frozen_too else (e_s, e_s)  # x: what LCKT moves
        e_t = self.embed_t(f_t)
        with autocast_off(f_s.device):
            return self._terms_of(f_s, f_t, e_s, x, e_t, idx, contrast_idx)

    def _native(self, f_s: Tensor, f_t: Tensor, idx: Tensor, contrast_idx: Tensor | None) -> Tensor | None:
        """The forward by native code, or None: see `native_step`. LCKT has to be of the embeddings, or off."""
        if self.critic == "dual" or not self.lambda_gckt:
            return None
        if not isinstance(f_t, Tensor):
            return None
        if type(self.local) is not LocalTerm or touched(self.local):
            return None
        if self.lambda_lckt and (self.local.features != "embed" or not self.lckt_trains_embed):
            return None

        def local(e_s: Tensor, e_t: Tensor, needs_grad: bool) -> tuple[Tensor, Tensor | None]:
            key = self._key(idx)
            return self.local.value_and_gradient(e_s, e_t, key) if needs_grad else (self.local(e_s, e_t, key), None)

        term = local if self.lambda_lckt else None
        native = native_step(
            self, f_s, f_t.detach(), idx, contrast_idx, self.lambda_gckt, term, self.lambda_lckt, self._factors
        )
        if native is None:
            return None
        self._terms.copy_(native[1])
        if self.training:
            self.local.finish_step()
        return native[0]

    def _refuse_zero_rows(self, f_s: Tensor, f_t: Tensor) -> None:
        """Said here, on the CPU, by the names of our arguments and before anything has changed; the op checks again."""
        local = self.local
        used = self.lambda_lckt and local.features == "raw" and local.ot["cost"] == "cosine" and local.center == "none"
        if not used or f_s.device.type != "cpu" or torch.compiler.is_compiling():
            return
        for name, features in (("f_s", f_s), ("f_t", f_t)):
            zero = (features.detach().flatten(1) == 0).all(1)
            if zero.any():
                raise ValueError(f"{name}: row {int(zero.nonzero()[0])} is zero, which has no direction for the cosine")

    def _terms_of(self, f_s, f_t, e_s, x, e_t, idx, contrast_idx) -> dict[str, Tensor]:
        terms = {}
        if self.lambda_lckt:  # first: should it refuse its input, banks and log Z are as they were
            lckt = self.local(*self._local_sides(f_s, f_t, x, e_t), self._key(idx))
            self._terms[1].copy_(lckt.detach())
            terms["lckt"] = self._weight(1, self.lambda_lckt) * lckt
        if self.lambda_gckt:
            anchors = torch.stack((e_s, e_t))  # [2, B, D]
            joined = self._join(anchors, idx)
            gckt = self._gckt(anchors, idx, contrast_idx, joined)
            self._terms[0].copy_(gckt.detach())
            terms["gckt"] = -self._weight(0, self.lambda_gckt) * gckt
            if self.training and self.contrast is not None:
                self.contrast.finish_step(anchors, idx, joined)
        if self.training:
            self.local.finish_step()
        return terms

    def _weight(self, term: int, weight: float) -> float | Tensor:
        return weight if self._factors is None else weight * self._factors[term]

    def _key(self, idx: Tensor) -> Tensor:
        """int64 [B]: rows with equal keys are LCKT's pairs."""
        if self.local.pairs_by == "image":
            return idx.long()
        rows = idx.long().clamp(0, self.n_data - 1)  # on a device nothing can be said here of those out of range
        return self.table("class", idx.device)[rows]

    def _local_sides(self, f_s: Tensor, f_t: Tensor, e_s: Tensor, e_t: Tensor) -> tuple[Tensor, Tensor]:
        return (e_s, e_t) if self.local.features == "embed" else (f_s.flatten(1), f_t.flatten(1))

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
        table = self.table("group", idx.device)
        group, among = (table[i.long().clamp(0, self.n_data - 1)] for i in (idx, index))
        eligible = group[:, None] != among[None]
        if self._exclude == "none":
            eligible = torch.ones_like(eligible)
        count = eligible.sum(1)  # [B]
        negative = (score * eligible).sum(2) / count.clamp_min(1)
        first = 0 if joined is None else joined.own.start
        positive = score.diagonal(first, dim1=1, dim2=2) * (count > 0)
        return torch.where(inside, positive, torch.nan), negative, count

    def extra_repr(self) -> str:
        return (
            f"critic={self.critic!r}, lambda_gckt={self.lambda_gckt}, lambda_lckt={self.lambda_lckt}, "
            f"negatives={self.negatives!r}"
        )


def _place_terms(module: WCoRDLoss, _keys) -> None:
    """`_terms` is in no state dict, so `assign` leaves it on meta."""
    if module._terms.is_meta and not module.embed_s.linear.bias.is_meta:
        module._terms = torch.zeros(2, device=module.embed_s.linear.bias.device)
        for name in module.constants:
            setattr(module, name, module.moved(getattr(module, name)))
