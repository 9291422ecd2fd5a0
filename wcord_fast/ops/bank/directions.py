"""The bank ops for S directions with one set of draws: banks that are tensors, or shards of which every rank holds one.

The public functions (S = 1) and the modules (S = 2) call these; they have checked the arguments. `joined` is the batch
of all ranks, where the caller has it already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..sampling.spec import DrawSpec
from . import autograd, op, sharded
from .op import log_z_op, update_op
from .pool_mean import pool_mean_op
from .sharded import Shard

if TYPE_CHECKING:
    from ...nn import MemoryBank


def nce(anchors, banks, index, log_z, spec: DrawSpec, temperature, plan="auto", backend="auto", joined=None) -> Tensor:
    """Losses [S, B] of anchors [S, B, D] against S banks with log_z [S]."""
    if isinstance(banks[0], Shard):
        return sharded.nce(anchors, banks, index, log_z, spec, temperature, plan, backend, joined)
    return autograd.nce(anchors, banks, index, log_z, spec, temperature, plan, backend)


def nce_and_gradient(
    anchors, banks, index, log_z, spec: DrawSpec, temperature, plan, backend, needs_grad: bool
) -> tuple[Tensor, Tensor]:
    """Losses [S, B] of detached anchors against banks that are tensors, and their gradient [S, B, D]."""
    run: Any = op.nce
    return run(anchors, banks, index, log_z, *autograd.spec_args(spec), temperature, needs_grad, plan, backend)


def infonce(anchors, banks, index, positive, spec, temperature, plan="auto", backend="auto", joined=None) -> Tensor:
    """InfoNCE losses [S, B] of anchors [S, B, D]; `positive` [S, B, D], or None: the banks' rows `index`."""
    if isinstance(banks[0], Shard):
        return sharded.infonce(anchors, banks, index, positive, spec, temperature, plan, backend, joined)
    return autograd.infonce(anchors, banks, index, positive, spec, temperature, plan, backend)


def sigmoid(anchors, banks, index, positive, scale, bias, spec, plan="auto", backend="auto", joined=None) -> Tensor:
    """Sigmoid losses [S, B] of anchors [S, B, D], as `infonce`; `scale` and `bias` are scalar tensors."""
    if isinstance(banks[0], Shard):
        return sharded.sigmoid(anchors, banks, index, positive, scale, bias, spec, plan, backend, joined)
    return autograd.sigmoid(anchors, banks, index, positive, scale, bias, spec, plan, backend)


def mean_score(anchors, banks, index, spec: DrawSpec, plan="auto", backend="auto", owners=(), joined=None) -> Tensor:
    """Mean negative scores [S, B] of anchors [S, B, D] against S banks, which may be rows of MemoryBanks `owners`."""
    sums = _class_sums(owners, spec) if plan == "auto" and spec.whole_pool else []
    if isinstance(banks[0], Shard):
        return sharded.mean_score(anchors, banks, index, spec, plan, backend, sums, joined)
    if sums:
        mean = pool_mean_op(anchors.detach(), banks, sums, index, spec.tables, spec.source, spec.k)
        return (anchors.to(mean.dtype) * mean).sum(-1)
    return autograd.mean_score(anchors, banks, index, spec, plan, backend)


def log_z(
    known, anchors, banks, index, spec: DrawSpec, temperature, plan="auto", backend="auto", joined=None
) -> Tensor:
    """`known` log Z [S] with this batch's estimates in place of NaN. Computes nothing if no entry is NaN."""
    if isinstance(banks[0], Shard):
        return sharded.log_z(known, anchors, banks, index, spec, temperature, plan, backend, joined)
    return log_z_op(known, anchors.detach(), banks, index, *autograd.spec_args(spec), temperature, plan, backend)


def given(rows: Tensor) -> DrawSpec:
    """The record of explicit negatives [B, K], checked by the caller."""
    return DrawSpec("given", rows.shape[1], "no", False, 0, [rows])


def update_rows_(bank: Tensor | MemoryBank, matrix: Tensor, index: Tensor, rows: Tensor, momentum: float) -> None:
    """`bank_update_` of `matrix`, the rows of `bank` that this process holds, by their numbers within it."""
    sums = None if isinstance(bank, Tensor) else bank.current_sums()
    old = None if sums is None else matrix[_in_range(index, matrix.shape[0])]
    update_op(matrix, index, rows.detach(), momentum, "auto")
    if sums is not None and old is not None:
        sums.followed(matrix, _in_range(index, matrix.shape[0]), old)


def _class_sums(owners, spec: DrawSpec) -> list[Tensor]:
    """The class sums of the banks, or [] if a bank keeps none, as a tensor and a queue do."""
    if torch.compiler.is_compiling() or not all(hasattr(bank, "class_sums") for bank in owners):
        return []
    tables = [spec.table("label"), spec.table("class_start")] if spec.source == "class" else [None, None]
    return [bank.class_sums(*tables).sums for bank in owners]


def _in_range(index: Tensor, num_data: int) -> Tensor:
    """`index` with rows out of range, which the op flags, moved to row 0 or N - 1."""
    return index.long().clamp(0, num_data - 1)
