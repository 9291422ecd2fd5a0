"""Contrast with rows that are split over the ranks: every rank scores the anchors of all ranks against its own rows.

The join is a log-sum-exp (InfoNCE) or a sum (sigmoid) in rank order. InfoNCE's negatives contribute
n = log sum_j exp(u_j), of which rank r has the part n_r. A backend gives loss_r = softplus(n_r - u_0), hence
n_r - u_0 = log(exp(loss_r) - 1) without cancellation, and loss = softplus(logsumexp_r(n_r - u_0)).

Bytes that a rank sends do not depend on the number of rows. Everything here is collective.
"""

from __future__ import annotations

from itertools import chain, repeat
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

from ...distributed.ranks import gather_rows, not_compiled, own_slice, ranks, scatter_sums, sizes_of
from ..tensors import accumulation_dtype
from . import mean, reference
from .autograd import Runner, wants_grad
from .reference import Contrast, Totals


class JoinedPairs(NamedTuple):
    """The pairs of all ranks, in rank order, detached."""

    anchors: Tensor  # [B, D]
    positives: Tensor  # [B, D]
    label: Tensor | None  # int64 [B]
    sizes: list[int]  # pairs of every rank

    def swapped(self) -> JoinedPairs:
        """The other direction: positives are anchors."""
        return self._replace(anchors=self.positives, positives=self.anchors)

    @property
    def own(self) -> slice:
        """The positions of this rank's pairs among all."""
        return own_slice(self.sizes)


@not_compiled
def join(anchors: Tensor, positives: Tensor, label: Tensor | None) -> JoinedPairs:
    """The pairs of all ranks from this rank's anchors and positives [B_r, D] and labels [B_r]: one message per rank."""
    sizes = sizes_of(len(anchors), anchors.device)
    labels = [] if label is None else [label.long()]
    all_anchors, all_positives, *all_labels = gather_rows([anchors.detach(), positives.detach(), *labels], sizes)
    return JoinedPairs(all_anchors, all_positives, all_labels[0] if all_labels else None, sizes)


@not_compiled
def mean_loss(c: Contrast, joined: JoinedPairs, backend: str) -> Tensor:
    """`mean.mean_loss` of this rank's anchors against the rows of all ranks.

    Args:
        c: this rank's anchors, with the rows that this rank holds (perhaps none), their labels and indices. An anchor's
            index is -1. The rows have no losses (`both` is off). The scale is above 0.
        joined: the pairs of all ranks.
    """
    call = _Call(joined, backend, wants_grad(c))
    return mean.attach(c, call) if call.needs_grad else call.mean(c)[0]


class _Call:
    """One direction; `mean` has the signature of `autograd.Runner.mean`."""

    def __init__(self, joined: JoinedPairs, backend: str, needs_grad: bool):
        self.joined, self.backend, self.needs_grad = joined, backend, needs_grad

    def mean(self, c: Contrast) -> tuple[Tensor, ...]:
        """The mean of this rank's losses, and, if needed, its gradients in anchors, positives, scale and bias."""
        sizes, own, everyone = self.joined.sizes, self.joined.own, self._everyone(c)
        wide = accumulation_dtype(c.anchors, c.positives, c.rows)
        anchors, positives = everyone.anchors.to(wide), everyone.positives.to(wide)
        score = (anchors * positives).sum(1) * c.scale + c.bias  # [B], of the positives
        part = self._values(everyone, wide)  # [B]
        if c.critic == "infonce":
            odds = _joined_odds(part)
            loss, slope = softplus(odds).to(wide)[own], torch.sigmoid(odds).to(wide)[own]
            columns, known = [], Totals(torch.zeros_like(part), score + softplus(odds).to(wide), part.new_empty(0))
        else:
            slope = torch.sigmoid(-score[own])
            columns = [(part - softplus(-score))[:, None]]
            known = Totals(torch.zeros_like(part), part.new_empty(0), part.new_empty(0))
        if self.needs_grad:
            columns += self._gradients(everyone, known)
        sums = scatter_sums(torch.cat(columns, 1), sizes) if columns else part[own, None]  # [B_r, columns]
        if c.critic == "sigmoid":
            loss, sums = sums[:, 0] + softplus(-score[own]), sums[:, 1:]
        if not self.needs_grad:
            return (loss.mean(),)
        weight = 1 / len(loss)
        pull = weight * slope
        slopes, of_scores = sums[:, -1], sums[:, :-1]  # sums over the negatives of dL/du, and of dL/du times the row
        of_anchors = of_scores - pull[:, None] * positives[own]
        of_positives = -pull[:, None] * anchors[own]
        of_scale = (of_anchors * anchors[own]).sum()
        return loss.mean(), of_anchors * c.scale, of_positives * c.scale, of_scale, slopes.sum() - pull.sum()

    def _everyone(self, c: Contrast) -> Contrast:
        """The anchors of all ranks against the rows of this one."""
        joined = self.joined
        index = None if c.row_index is None else torch.full((len(joined.anchors),), -1, device=c.rows.device)
        return c._replace(
            anchors=joined.anchors, positives=joined.positives, anchor_label=joined.label, anchor_index=index
        )

    def _values(self, c: Contrast, wide: torch.dtype) -> Tensor:
        """Losses [B] against the rows that this rank holds."""
        if len(c.rows):
            return Runner(c, self.backend).values(c).value
        reference.check_values(c)  # as the other ranks do: all raise, or none
        score = (c.anchors.to(wide) * c.positives.to(wide)).sum(1) * c.scale + c.bias
        return torch.zeros_like(score) if c.critic == "infonce" else softplus(-score)

    def _gradients(self, c: Contrast, known: Totals) -> list[Tensor]:
        """[B, D + 1]: sums over this rank's rows of dL/du times the row, and of dL/du."""
        sizes = self.joined.sizes
        if not len(c.rows):
            return [known.slope.new_zeros(len(c.anchors), c.anchors.shape[1] + 1)]
        weight = known.slope.new_tensor(list(chain.from_iterable(repeat(1 / n, n) for n in sizes)))
        # A column of ones beside the rows gives each anchor's sum of dL/du.
        c = c._replace(
            anchors=pad(c.anchors, (0, 1)), positives=pad(c.positives, (0, 1)), rows=pad(c.rows, (0, 1), value=1)
        )
        gradients = Runner(c, self.backend).gradients(c, weight, None, known, (True, False, True, True))
        return [gradients.anchors / c.scale]


def _joined_odds(loss: Tensor) -> Tensor:
    """log(exp(loss_i) - 1) of the whole loss, float64 [B], from this rank's part `loss` [B]."""
    part = loss.double()
    odds = part + torch.log(-torch.expm1(-part))
    (everyone,) = gather_rows([odds[None]], [1] * ranks().world)  # [W, B]
    return everyone.logsumexp(0)
