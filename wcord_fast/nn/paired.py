"""InfoNCE and the sigmoid loss between the pairs of a batch, without a bank and without image numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..distributed.ranks import ranks
from ..functional.batch import batch_infonce, batch_sigmoid
from ..ops.bank.sharded import join as join_anchors
from ..ops.contrast import mean, sharded
from ..ops.contrast import reference as ops
from ..ops.contrast.sharded import JoinedPairs, join
from .options import WCoRDLossOptions
from .queue import UNKNOWN, FeatureQueue

SCALE, BIAS = 10.0, -10.0  # SigLIP's initial values


class ScoreMap(nn.Module):
    """Scale and bias of the sigmoid's scores, trained: a score is exp(log_scale) * <e_s, e_t> + bias.

    The parameters have shape [1]: FSDP splits no scalars.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.empty(1))
        self.bias = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """SigLIP's initial values."""
        nn.init.constant_(self.log_scale, math.log(SCALE))
        nn.init.constant_(self.bias, BIAS)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Scale and bias, scalars in fp32 (fp64 for fp64 parameters)."""
        dtype = torch.promote_types(self.bias.dtype, torch.float32)
        return self.log_scale.to(dtype).exp()[0], self.bias.to(dtype)[0]


class PairedContrast(nn.Module):
    """Each pair (student's row, teacher's row) against the other rows of the batch, or those of two queues.

    In a process group the batch is that of all ranks, and the queues hold rows of all ranks; in eval mode the batch is
    this rank's. With sharded queues a call is collective, in eval mode as well. An anchor of a group (a class, an
    image) has no negative of that group.

    Args:
        options: `negatives` is "batch" or "queue".
        grouped: whether rows have groups, which queues then keep.
        dtype: dtype of the queues' rows.
        backend: see `functional.batch_infonce`.
    """

    queue_s: FeatureQueue | None
    queue_t: FeatureQueue | None

    def __init__(self, options: WCoRDLossOptions, *, grouped: bool, dtype: torch.dtype, backend: str):
        super().__init__()
        self.temperature, self.backend = options.temperature, backend
        self.queue_s = self.queue_t = None
        if options.negatives == "queue":
            self.queue_s, self.queue_t = (
                FeatureQueue(
                    options.rows_of_queue(), options.feat_dim, dtype=dtype, labels=grouped, shard=options.shard
                )
                for _ in range(2)
            )

    @property
    def sharded(self) -> bool:
        """Whether other ranks hold rows of the queues."""
        return self.queue_t is not None and self.queue_t.ranks.world > 1

    def forward(self, e_s: Tensor, e_t: Tensor, group: Tensor | None, scores: tuple[Tensor, Tensor] | None) -> Tensor:
        """The mean loss of e_s [B, D] and e_t [B, D], both directions summed, a scalar.

        In training the batch is pushed into the queues after scoring.

        Args:
            group: int64 [B], below 0 where unknown, or None.
            scores: scale and bias of the sigmoid, or None for InfoNCE.
        """
        if self.queue_s is not None and self.queue_t is not None:
            return self._with_queues(self.queue_s, self.queue_t, e_s, e_t, group, scores)
        scope = "global" if self.training and ranks().world > 1 else "rank"  # the global scope is not compiled
        if scores is None:
            losses = batch_infonce(
                e_s, e_t, temperature=self.temperature, labels=group, scope=scope, backend=self.backend
            )
        else:
            scale, bias = scores
            losses = batch_sigmoid(e_s, e_t, scale=scale, bias=bias, labels=group, scope=scope, backend=self.backend)
        return losses.mean()

    def _with_queues(self, queue_s: FeatureQueue, queue_t: FeatureQueue, e_s, e_t, group, scores) -> Tensor:
        labels = _labels(queue_t, e_s, group)
        joined = None
        if self.sharded or (self.training and ranks().world > 1):
            joined = join(e_s, e_t, labels)
        loss = self._against(queue_t, e_s, e_t, labels, scores, joined)
        loss = loss + self._against(queue_s, e_t, e_s, labels, scores, joined and joined.swapped())
        if self.training:
            rows_s, rows_t, row_labels = (e_s, e_t, labels) if joined is None else joined[:3]
            for queue, rows in ((queue_s, rows_s), (queue_t, rows_t)):
                queue.push_joined_(rows.detach(), None if row_labels is None else row_labels.long())
        return loss

    def reset_parameters(self) -> None:
        """Empty the queues."""
        for queue in (self.queue_s, self.queue_t):
            if queue is not None:
                queue.reset_parameters()

    def _against(
        self, queue: FeatureQueue, anchors: Tensor, positives: Tensor, labels, scores, joined: JoinedPairs | None
    ) -> Tensor:
        """The mean loss of one direction, a scalar. `joined`: the pairs of all ranks, needed for a sharded queue."""
        queue.require_filled()
        slots = torch.where(queue.is_filled(), 0, -1)  # an empty slot has every anchor's index, so it is no negative
        index = torch.full((len(anchors),), -1, device=anchors.device)
        scale, bias = (1 / self.temperature, 0.0) if scores is None else scores
        critic = "infonce" if scores is None else "sigmoid"
        c = ops.Contrast(
            critic, anchors, positives, queue.rows, -1, False, scale, bias, labels, queue.own_labels(), index, slots
        )
        if joined is None or not self.sharded:
            return mean.mean_loss(c, self.backend)
        return sharded.mean_loss(c, joined, self.backend)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, backend={self.backend!r}"


def _labels(queue: FeatureQueue, rows: Tensor, group: Tensor | None) -> Tensor | None:
    if queue.labels is None:
        return None
    return torch.full((len(rows),), UNKNOWN, device=rows.device) if group is None else group


def batch_scores(anchors: Tensor, group: Tensor | None, *, own: bool, joins: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Positive and mean negative scores [2, B] of anchors [2, B, D] within the batch, and the number of negatives [B].

    An anchor whose group fills the batch has no negative; both of its scores are 0.

    Args:
        group: int64 [B]; rows of equal groups of at least 0 are no negatives of each other.
        own: whether an image's own row is one of its negatives.
        joins: whether the batch is that of all ranks (collective).
    """
    own_group = torch.arange(anchors.shape[1], device=anchors.device) if group is None else group
    joined = join_anchors(anchors, own_group) if joins else None
    others, all_groups = (anchors.detach(), own_group) if joined is None else (joined.anchors, joined.index)
    first = 0 if joined is None else joined.own.start
    score = anchors @ others.flip(0).transpose(1, 2)  # [2, B, B of all ranks]
    eligible = torch.ones(score.shape[1:], dtype=torch.bool, device=score.device)
    if group is not None:
        eligible = (group[:, None] != all_groups) | (group[:, None] < 0)
    if not own:
        eligible.diagonal(first).fill_(False)
    count = eligible.sum(1)  # [B]
    negative = (score * eligible).sum(2) / count.clamp_min(1)
    positive = score.diagonal(first, dim1=1, dim2=2) * (count > 0)
    return positive, negative, count
