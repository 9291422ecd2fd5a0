"""Contrast of anchors with the rows of a batch or a queue in plain PyTorch, on any device and dtype: the oracle.

Scores are made in blocks of anchors, so that nothing of size A x R is kept. Everything is accumulated in fp32, or fp64
where a tensor is fp64. README.md beside this file derives the formulas.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .. import checks
from ..status import Code
from ..tensors import accumulation_dtype

CHUNK_BYTES = 64 << 20


class Contrast(NamedTuple):
    """Anchors, the positive of each, and the rows that hold the negatives of all.

    A row is no negative of an anchor if it is the anchor's positive, or has its class (a label below 0 is an unknown
    class, equal to none), or its index.
    """

    critic: str  # "infonce" or "sigmoid"
    anchors: Tensor  # [A, D]
    positives: Tensor  # [A, D]
    rows: Tensor  # [R, D]
    first: int  # anchor i's positive is row first + i; -1: the positives are not among the rows
    both: bool  # the rows are the positives, and anchors of the other direction: values and gradients are of both
    scale: Tensor | float  # scalar; a score is scale * <anchor, row> + bias
    bias: Tensor | float  # scalar
    anchor_label: Tensor | None  # integer [A]
    row_label: Tensor | None  # integer [R]
    anchor_index: Tensor | None  # integer [A]
    row_index: Tensor | None  # integer [R]


class Totals(NamedTuple):
    """What the gradients need of the pass over all scores that gave the losses."""

    slope: Tensor  # [A]; minus the derivative of the loss in the positive's score
    total: Tensor  # [A]; InfoNCE: log-sum-exp of the positive's and the negatives' scores. Sigmoid: empty
    row_total: Tensor  # [R]; the other direction's totals, with `both`; else empty


class Values(NamedTuple):
    """Losses and totals."""

    value: Tensor  # [A]; with `both` the sum of the two directions
    slope: Tensor  # as in `Totals`, as are the following
    total: Tensor
    row_total: Tensor

    @property
    def totals(self) -> Totals:
        """All but the losses, which their owner may write to."""
        return Totals(*self[1:])


class Gradients(NamedTuple):
    anchors: Tensor  # [A, D]; empty where it is not needed, and that of scale is 0 then
    positives: Tensor  # [A, D]; empty where it is not needed
    scale: Tensor  # scalar
    bias: Tensor  # scalar


def values(c: Contrast) -> Values:
    """The losses of the anchors.

    Raises:
        ValueError: on the CPU, a value that is not finite. On a device all losses are NaN then, and a status bit set.
    """
    finite = check_values(c)
    result = _values(widened(c))
    return result if finite is None else result._replace(value=torch.where(finite, result.value, torch.nan))


def check_values(c: Contrast) -> Tensor | None:
    """On the CPU None, or a ValueError that names what is not finite; on a device a bool scalar: all is finite."""
    rows = [checks.finite_rows(name, rows, Code.FEATURE).all() for name, rows in named(c).items()]
    given = {name: value for name, value in (("scale", c.scale), ("bias", c.bias)) if isinstance(value, Tensor)}
    scalars = [checks.finite_rows(name, value[None], Code.FEATURE) for name, value in given.items()]
    return None if c.anchors.device.type == "cpu" else torch.stack([*rows, *scalars]).all()


def named(c: Contrast) -> dict[str, Tensor]:
    """The tensors by the names that users know them by."""
    if c.both:
        return {"x": c.anchors, "y": c.rows}
    return {"anchor": c.anchors, "positive": c.positives, "rows": c.rows}


def _values(c: Contrast) -> Values:
    if c.critic == "sigmoid":
        own = c.anchors.new_zeros(len(c.anchors))
        other = c.rows.new_zeros(len(c.rows))
        for lo, hi, scores, excluded in _blocks(c):
            terms = _softplus(scores).masked_fill(excluded, 0)
            own[lo:hi] = terms.sum(1)
            other += terms.sum(0)
    else:
        own = c.anchors.new_full((len(c.anchors),), -torch.inf)
        other = c.rows.new_full((len(c.rows),), -torch.inf)
        for lo, hi, scores, excluded in _blocks(c):
            scores = scores.masked_fill(excluded, -torch.inf)
            own[lo:hi] = scores.logsumexp(1)
            if c.both:
                other = torch.logaddexp(other, scores.logsumexp(0))
    return with_positives(c, (own, other) if c.both else (own,))


def with_positives(c: Contrast, negatives: tuple[Tensor, ...]) -> Values:
    """The losses from what the negatives of each direction give: sums of softplus or log-sum-exps, [A] each."""
    positive = (c.anchors * c.positives).sum(-1) * c.scale + c.bias  # [A]
    none = positive.new_empty(0)
    if c.critic == "sigmoid":
        value = torch.stack(negatives).sum(0) + len(negatives) * _softplus(-positive)
        return Values(value, len(negatives) * torch.sigmoid(-positive), none, none.clone())
    # log-sum-exp of all - positive, without the cancellation where the negatives add little.
    losses = [_softplus(n - positive) for n in negatives]
    totals = [positive + loss for loss in losses]
    value, slope = torch.stack(losses).sum(0), torch.stack([-torch.expm1(-loss) for loss in losses]).sum(0)
    return Values(value, slope, totals[0], totals[1] if c.both else none)


def gradients(
    c: Contrast, weight: Tensor, row_weight: Tensor | None, known: Totals, need_anchors: bool, need_positives: bool
) -> Gradients:
    """Derivatives of sum_i weight_i value_i.

    Args:
        weight: [A].
        row_weight: [R], weights of the rows' own losses, whose negatives the anchors are: with `both` those of the
            other direction; or None, where the rows have no losses.
        known: of `values`; its `row_total` is needed where there is a `row_weight`.
        need_anchors: whether the gradients of anchors and scale are wanted.
        need_positives: whether that of the positives is.
    """
    c = widened(c)
    grad, positive_grad, _, slope_sum = (t.zero_() for t in unwritten(c.anchors, need_anchors, need_positives))
    for lo, hi, scores, excluded in _blocks(c):
        if c.critic == "sigmoid":
            both = weight[lo:hi, None] if row_weight is None else weight[lo:hi, None] + row_weight
            slopes = torch.sigmoid(scores) * both
        else:
            slopes = torch.exp(scores - known.total[lo:hi, None]) * weight[lo:hi, None]
            if row_weight is not None:
                slopes += torch.exp(scores - known.row_total) * row_weight
        slopes = slopes.masked_fill(excluded, 0)
        slope_sum += slopes.sum()
        if need_anchors:
            grad[lo:hi] = slopes @ c.rows
        if need_positives and c.both:
            positive_grad += slopes.T @ c.anchors[lo:hi]
    pull = weight * known.slope
    return pulled(c, pull, grad if need_anchors else None, positive_grad if need_positives else None, slope_sum)


def pulled(
    c: Contrast, pull: Tensor, grad: Tensor | None, positive_grad: Tensor | None, slope_sum: Tensor
) -> Gradients:
    """The gradients from those of the negatives' terms, which are written to.

    Args:
        pull: [A], minus the derivatives in the positives' scores.
        grad, positive_grad: [A, D], sums of the derivatives in the scores times the rows and times the anchors; None
            where no gradient is wanted.
        slope_sum: scalar, the sum of the derivatives in the scores.
    """
    none = c.anchors.new_empty(0)
    of_scale = slope_sum.new_zeros(())
    if grad is not None:
        grad -= pull[:, None] * c.positives
        of_scale = (grad * c.anchors).sum()
    if positive_grad is not None:
        positive_grad -= pull[:, None] * c.anchors
    grad, positive_grad = (none.clone() if t is None else t * c.scale for t in (grad, positive_grad))
    return Gradients(grad, positive_grad, of_scale, slope_sum - pull.sum())


def unwritten(anchors: Tensor, need_anchors: bool, need_positives: bool) -> Gradients:
    """Tensors for the gradients of a contrast with `anchors` [A, D] in the dtype of the call."""
    of_anchors, of_positives = (
        torch.empty_like(anchors) if needed else anchors.new_empty(0) for needed in (need_anchors, need_positives)
    )
    return Gradients(of_anchors, of_positives, anchors.new_empty(()), anchors.new_empty(()))


def _blocks(c: Contrast) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """(lo, hi, scores [hi - lo, R] of anchors lo .. hi - 1, bool: True where the row is no negative of the anchor)."""
    height = max(1, CHUNK_BYTES // (len(c.rows) * c.rows.element_size()))
    for lo in range(0, len(c.anchors), height):
        hi = min(lo + height, len(c.anchors))
        scores = c.anchors[lo:hi] @ c.rows.T * c.scale + c.bias
        excluded = torch.zeros_like(scores, dtype=torch.bool)
        if c.first >= 0:
            excluded.diagonal(c.first + lo).fill_(True)
        if c.anchor_label is not None:
            own = c.anchor_label[lo:hi, None]
            excluded |= (own == c.row_label) & (own >= 0)
        if c.anchor_index is not None:
            excluded |= c.anchor_index[lo:hi, None] == c.row_index
        yield lo, hi, scores, excluded


def widened(c: Contrast) -> Contrast:
    """`c` with its tensors contiguous in the dtype of the call."""
    wide = accumulation_dtype(c.anchors, c.positives, c.rows)
    anchors, positives, rows = (t.to(wide).contiguous() for t in (c.anchors, c.positives, c.rows))
    scale, bias = (t.to(wide) if isinstance(t, Tensor) else t for t in (c.scale, c.bias))
    return c._replace(anchors=anchors, positives=positives, rows=rows, scale=scale, bias=bias)


def _softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, x.new_zeros(()))
