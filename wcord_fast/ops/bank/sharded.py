"""Scores against banks whose rows are split over the ranks: every rank scores the anchors of all ranks.

Anchors and their row numbers are all-gathered, each rank scores them against its own rows (partials.py), and
values and gradients are reduce-scattered in rank order: O(B * D) bytes, whatever K and N are. Draws need no
communication. Both collectives happen in forward; backward multiplies.

Every function here is collective: all ranks call it, with the same options. Arguments have been checked by the callers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...distributed.ranks import gather_rows, not_compiled, own_slice, ranks, scatter_sums, sizes_of
from .. import checks
from ..sampling.reference import pool_size
from ..sampling.spec import DrawSpec
from ..status import Code
from ..tensors import accumulation_dtype
from . import critics, partials
from .autograd import attach, detached, wants_grad
from .class_sums import excluded_rows
from .op import checked
from .part import Part
from .reference import normalised, portion


class Shard(NamedTuple):
    """The rows [n, D] of a bank that this rank holds, and their numbers."""

    rows: Tensor
    part: Part

    @property
    def shape(self) -> tuple[int, int]:
        """Shape [N, D] of the whole bank."""
        return self.part.num_data, self.rows.shape[1]


@dataclass(frozen=True)
class Joined:
    """The batch of all ranks, in rank order."""

    anchors: Tensor  # [S, B, D], detached
    index: Tensor  # int64 [B], with unchecked values
    own_index: Tensor  # [B_r], this rank's part of index
    sizes: list[int]  # anchors of every rank
    positive: Tensor | None = None  # [S, B, 1], 0 or, where a given positive is not finite, that value

    @property
    def own(self) -> slice:
        """The positions of this rank's anchors among all."""
        return own_slice(self.sizes)


def join(anchors: Tensor, index: Tensor, positive: Tensor | None = None) -> Joined:
    """The batch of all ranks from this rank's anchors [S, B_r, D] and their rows [B_r]: one message per rank.

    Given positives [S, B_r, D] are not sent, only whether they are finite. No value is checked here: a check of the
    joined values raises on every rank alike, and none waits for one that has raised.
    """
    sizes = sizes_of(len(index), anchors.device)
    sent = [anchors.detach().transpose(0, 1), index.long()]
    if positive is not None:
        sent.append(torch.where(positive.isfinite(), 0, positive).sum(-1, keepdim=True).transpose(0, 1))
    rows, numbers, *others = gather_rows(sent, sizes)  # [B, S, D], [B], [B, S, 1]
    return Joined(rows.transpose(0, 1), numbers, index, sizes, others[0].transpose(0, 1) if others else None)


@not_compiled
def nce(anchors, shards, index, log_z, spec: DrawSpec, temperature, plan, backend, joined: Joined | None = None):
    """Losses [S, B_r] of this rank's anchors against all rows of the banks: `directions.nce` for shards."""
    call = _Call(anchors, shards, index, spec, joined)
    log_z = log_z.to(accumulation_dtype(anchors, *call.rows))
    needs_grad = wants_grad(anchors)
    args = (call.anchors, call.rows, call.part, call.index, log_z, call.spec, temperature, needs_grad, plan, backend)
    return call.scatter(anchors, *partials.nce(*args))


@not_compiled
def infonce(
    anchors, shards, index, positive, spec: DrawSpec, temperature, plan, backend, joined: Joined | None = None
) -> Tensor:
    """InfoNCE losses [S, B_r] of this rank's anchors: `directions.infonce` for shards. The join is a log-sum-exp."""
    given = detached(positive)
    call = _Call(anchors, shards, index, spec, joined, given)
    ok = critics.finite_positives(given)
    needs_grad = wants_grad(anchors, positive)
    args = (call.anchors, call.rows, call.part, call.index, call.spec, temperature, needs_grad, plan, backend)
    log_sum, mean = partials.infonce(*args)
    (everyone,) = gather_rows([log_sum.double()[None]], [1] * ranks().world)  # [W, S, B]
    whole = everyone.logsumexp(0)
    columns = [mean * portion(log_sum.double(), whole)[..., None]] if needs_grad else []
    own_mean, own = call.own_sums(columns, given, shards)
    ends = critics.infonce_end(anchors.detach(), own, whole[:, call.own], own_mean, temperature, needs_grad)
    return call.attach(ok, ends, (anchors, positive))


@not_compiled
def sigmoid(
    anchors, shards, index, positive, scale, bias, spec: DrawSpec, plan, backend, joined: Joined | None = None
) -> Tensor:
    """Sigmoid losses [S, B_r] of this rank's anchors: `directions.sigmoid` for shards."""
    given = detached(positive)
    critics.finite_scalar("scale", scale)
    critics.finite_scalar("bias", bias)
    call = _Call(anchors, shards, index, spec, joined, given)
    ok = critics.finite_positives(given)
    needs_grad = wants_grad(anchors, positive, scale, bias)
    args = (call.anchors, call.rows, call.part, call.index, scale.detach(), bias.detach(), call.spec)
    value, slope, rows = partials.sigmoid(*args, needs_grad, plan, backend)
    columns = [value[..., None], slope[..., None], *([rows] if needs_grad else [])]
    joined_sums, own = call.own_sums(columns, given, shards)
    sums = joined_sums[..., 0], joined_sums[..., 1], joined_sums[..., 2:]
    ends = critics.sigmoid_end(anchors.detach(), own, scale.detach(), bias.detach(), sums, needs_grad)
    return call.attach(ok, ends, (anchors, positive, scale, bias))


@not_compiled
def mean_score(anchors, shards, index, spec: DrawSpec, plan, backend, sums, joined: Joined | None = None) -> Tensor:
    """Mean negative scores [S, B_r] of this rank's anchors: `directions.mean_score` for shards.

    `sums`: the class sums of this rank's rows, S x fp64 [G, D], for a whole pool by O(B * D); or [].
    """
    call = _Call(anchors, shards, index, spec, joined)
    if sums:
        mean = _partial_pool_mean(call, sums)
        return call.scatter(anchors, (call.anchors.to(mean.dtype) * mean).sum(-1), mean)
    args = (call.anchors, call.rows, call.part, call.index, call.spec, wants_grad(anchors), plan, backend)
    return call.scatter(anchors, *partials.mean_score(*args))


@not_compiled
def log_z(log_z, anchors, shards, index, spec: DrawSpec, temperature, plan, backend, joined: Joined | None = None):
    """`log_z` [S] with its NaN entries replaced by the estimates over the anchors of all ranks (one host read)."""
    unset = torch.isnan(log_z)
    if not bool(unset.any()):
        return log_z.clone()
    call = _Call(anchors, shards, index, spec, joined)
    args = (call.anchors, call.rows, call.part, call.index, call.spec, temperature, plan, backend)
    own = partials.log_sum_exp(*args).double()[None]  # [1, S]
    (everyone,) = gather_rows([own], [1] * ranks().world)  # [W, S]
    estimate = normalised(everyone.logsumexp(0), call.index, call.part.num_data, call.spec)
    estimate = torch.where(call.ok.all(), estimate, torch.nan)
    return torch.where(unset, estimate.to(log_z.dtype), log_z)


@not_compiled
def fetch(shards: list[Shard], joined: Joined) -> Tensor:
    """This rank's part of rows `joined.index` of the banks, from the ranks that hold them: [S, B_r, D]."""
    return scatter_sums(_held(shards, joined.index).transpose(0, 1), joined.sizes).transpose(0, 1)


def _held(shards: list[Shard], index: Tensor) -> Tensor:
    """Rows `index` of the banks, zero where another rank holds them: [S, B, D]. Sums over the ranks are exact."""
    part, height = shards[0].part, shards[0].rows.shape[0]
    held = part.holds(index, height)
    rows = [s.rows.new_zeros(len(held), s.rows.shape[1]) for s in shards]
    for shard, out in zip(shards, rows, strict=True):
        out[held] = shard.rows[index[held] - part.first]
    return torch.stack(rows)


def held_rows(shard: Shard, joined: Joined) -> tuple[Tensor, Tensor]:
    """(row numbers within the shard, positions in the joined batch) of the anchors whose rows this rank holds."""
    at = shard.part.holds(joined.index, shard.rows.shape[0]).nonzero()[:, 0]
    return joined.index[at] - shard.part.first, at


class _Call:
    """The joined batch of one call, its values checked: on the CPU a bad one raises on every rank.

    `positive` [S, B_r, D]: given positives, or None. With `joined` they are rows of the joined batch.
    """

    def __init__(
        self,
        anchors: Tensor,
        shards: list[Shard],
        index: Tensor,
        spec: DrawSpec,
        joined: Joined | None,
        positive: Tensor | None = None,
    ):
        joined = join(anchors, index, positive) if joined is None else joined
        everyone = joined.index
        if joined.own_index is not index:  # the positives of an explicit contrast_idx
            (everyone,) = gather_rows([index.long()], joined.sizes)
        self.sizes, self.own = joined.sizes, joined.own
        if spec.source == "given":
            (rows,) = gather_rows([spec.table("indices")], self.sizes)
            spec = DrawSpec("given", rows.shape[1], "no", False, 0, [rows])
        self.rows, self.part = [shard.rows for shard in shards], shards[0].part
        self.anchors = joined.anchors
        self.index, self.spec, self.ok = checked(self.anchors, shards[0].part.num_data, everyone, spec)
        if joined.positive is not None:
            checks.finite_rows("positive", joined.positive, Code.ANCHOR)

    def scatter(self, anchors: Tensor, value: Tensor, grad: Tensor) -> Tensor:
        """Sums over ranks of value [S, B] and grad [S, B, D], this rank's anchors' part, tied to `anchors`."""
        if value.device.type != "cpu":
            value = torch.where(self.ok, value, torch.nan)
        wide = [value[..., None], grad] if wants_grad(anchors) else [value[..., None]]
        both = scatter_sums(torch.cat(wide, -1).transpose(0, 1), self.sizes).transpose(0, 1)  # [S, B_r, 1 or 1 + D]
        return attach(both[..., 0].contiguous(), (anchors, both[..., 1:].contiguous()))

    def own_sums(self, columns: list[Tensor], positive: Tensor | None, shards: list[Shard]) -> tuple[Tensor, Tensor]:
        """(sums over ranks of `columns` [S, B, n], joined, for this rank's anchors; their positives [S, B_r, D])."""
        acc, width = accumulation_dtype(self.anchors, *self.rows), shards[0].shape[1]
        columns = columns if positive is not None else [*columns, _held(shards, self.index)]
        if positive is not None and not columns:  # nothing is needed from other ranks
            return self.anchors.new_empty(0), positive
        joined = torch.cat([c.to(acc) for c in columns], -1)
        sums = scatter_sums(joined.transpose(0, 1), self.sizes).transpose(0, 1)
        return (sums[..., :-width], sums[..., -width:]) if positive is None else (sums, positive)

    def attach(self, ok: Tensor | bool, ends: tuple[Tensor, ...], inputs: tuple[Tensor | None, ...]) -> Tensor:
        """The loss of `ends` (critics.py) as a function of `inputs`; NaN for an anchor that was flagged on a device."""
        acc = accumulation_dtype(*(x for x in inputs[:2] if x is not None), *self.rows)
        loss, *grads = (t.to(acc) for t in ends)
        if loss.device.type != "cpu":
            loss = torch.where(self.ok[:, self.own] & ok, loss, torch.nan)
        return attach(loss, *zip(inputs, grads, strict=True))


def _partial_pool_mean(call: _Call, sums: list[Tensor]) -> Tensor:
    """This rank's partial of the mean row of each anchor's whole pool, [S, B, D]; see pool_mean.py."""
    spec, part, height = call.spec, call.part, call.rows[0].shape[0]
    size = pool_size(call.index, part.num_data, spec)[:, None]  # [B, 1]
    means = []
    for rows, by_class in zip(call.rows, sums, strict=True):
        pool = by_class.sum(0).expand(len(call.index), -1)
        if spec.source != "none" and height:
            own = rows[part.local(call.index, height)].to(torch.float64) * part.holds(call.index, height)[:, None]
            if spec.source == "class":
                own = excluded_rows(by_class, own, spec.table("label")[call.index], size == part.num_data - 1)
            pool = pool - own
        means.append(pool / size)
    return torch.stack(means).to(accumulation_dtype(call.anchors, *call.rows))
