"""CRDLoss: contrastive representation distillation, with RepDistiller's formula, call and state dict."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops import checks
from ..ops.first_order import first_order
from ..ops.keywords import keywords_of
from .contrast import Contrast, ContrastiveLoss
from .embed import Embed
from .native_step import native_step
from .options import ContrastOptions, make_record

NAMES = {"num_negatives": "nce_k", "temperature": "nce_t", "momentum": "nce_m"}  # RepDistiller's


class CRDLoss(ContrastiveLoss):
    """Contrastive representation distillation (Tian, Krishnan, Isola, ICLR 2020), equal to RepDistiller's `CRDLoss`.

    The loss sums both directions' batch means. Each anchor has K negatives from a memory bank; the banks are updated
    after scoring.

    Args:
        s_dim, t_dim: widths of the student's and the teacher's penultimate features.
        n_data: N, the number of training images: one bank row each.
        feat_dim: D, width of the embeddings.
        nce_k: K, negatives per anchor, or "all".
        nce_t: temperature tau.
        nce_m: momentum of the banks.
        labels: class of each training image [N]; with more than two known classes negatives come from other classes by
            default, as in RepDistiller's loader, and with two or fewer only the image's own row is left out. A label
            below 0 is unknown, see `NegativeSampler`.
        exclude, replacement: see `NegativeSampler`.
        z: "first" (the constant of the first training batch, RepDistiller's) or "ema" (decay 0.99).
        bank_dtype: torch.float32, float64, or a half type for half the memory; arithmetic is fp32 (fp64 with float64).
        plan, backend: plan and backend of the scores and log Z, see `functional.bank_nce`. The update of the rows
            follows `wcord_fast.use_backend` and WCORD_FAST_BACKEND only.
        seed: 64-bit integer for banks and draws; None takes one from torch's default generator.
        shard: "rank" splits the banks' rows over the ranks of the process group, see `MemoryBank`.

    A training forward embeds, sets log Z if unset, scores, updates both banks and advances the sampler, so each
    micro-batch is a step and activation checkpointing around this module (it runs it twice) is not supported. In eval
    mode it only scores, with the batch's own Z estimate while Z is unset. As in RepDistiller, the teacher's features
    are not detached: to avoid their gradient, pass detached ones or run the teacher under `torch.no_grad`.

    In a process group a training forward is collective, and the loss is the mean over this rank's images: weighted by
    W * B_rank / B, DDP's average of the gradients is that of one process with the joined batch.
    """

    contrast: Contrast

    @keywords_of(ContrastOptions, renamed=NAMES)
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
        **options: Any,
    ):
        super().__init__()
        self.n_data = checks.integer("n_data", n_data, least=1)
        checks.integer("s_dim", s_dim, least=1)
        checks.integer("t_dim", t_dim, least=1)
        record = self._options = make_record(ContrastOptions, options, NAMES)
        self.embed_s = Embed(s_dim, record.feat_dim)
        self.embed_t = Embed(t_dim, record.feat_dim)
        self.contrast = Contrast(
            n_data, record, labels=labels, bank_dtype=bank_dtype, plan=plan, backend=backend, seed=seed
        )

    @classmethod
    def from_opt(cls, opt: Any, **options: Any) -> CRDLoss:
        """Make it from RepDistiller's options (s_dim, t_dim, n_data, feat_dim, nce_k, nce_t, nce_m) and `options`."""
        names = ("s_dim", "t_dim", "n_data", "feat_dim", "nce_k", "nce_t", "nce_m")
        if isinstance(opt, dict):
            raise TypeError("opt: expected an object with attributes, got dict; use argparse.Namespace(**opt)")
        missing = [name for name in names if not hasattr(opt, name)]
        if missing:
            raise ValueError(f"opt: expected the attributes {', '.join(names)}; missing {', '.join(missing)}")
        keywords = {name: getattr(opt, name) for name in names[3:]} | options
        return cls(opt.s_dim, opt.t_dim, opt.n_data, **keywords)

    @first_order
    def forward(self, f_s: Tensor, f_t: Tensor, idx: Tensor, contrast_idx: Tensor | None = None) -> Tensor:
        """The loss of one batch, a scalar.

        Args:
            f_s: student features [B, s_dim] (or [B, ...] with s_dim values each).
            f_t: teacher features [B, t_dim].
            idx: int64 or int32 [B], each image's row in [0, n_data).
            contrast_idx: int64 or int32 [B, K + 1], in place of our draws: column 0 holds the rows of the positives,
                the others those of the negatives. Its width is K for this call, whatever nce_k is.
        """
        native = native_step(self, f_s, f_t, idx, contrast_idx)
        if native is not None:
            return native[0]
        self._check(f_s, f_t, idx, contrast_idx)
        anchors = torch.stack((self.embed_s(f_s), self.embed_t(f_t)))  # [2, B, D]
        joined = self.contrast.join(anchors, idx)
        loss = self.contrast.nce(anchors, idx, contrast_idx, joined).mean(1).sum()
        if self.training:
            self.contrast.finish_step(anchors, idx, joined)
        return loss
