"""The bank functions: scores of anchors against a memory bank of feature rows.

All take `negatives`, a `NegativeSampler` or explicit rows, and a bank as a tensor [N, D] or a `MemoryBank`. Losses are
per anchor, in fp32 (fp64 if the anchors or the bank are fp64); gradients are in the anchors' dtype. The bank carries no
gradient. Double backward, forward-mode differentiation and the transforms of `torch.func` raise NotImplementedError.

With a `MemoryBank(shard="rank")` every function is collective: all ranks call it, each with its own anchors, and
get the results of one process for the joined batch, in rank order (leave anchor_offset at 0).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..ops import checks
from ..ops.bank import directions, sharded
from ..ops.bank.plan import PLANS
from ..ops.bank.sharded import Shard
from ..ops.dispatch import BACKENDS
from ..ops.first_order import first_order
from ..ops.sampling.spec import DrawSpec
from ..ops.status import Code
from ..ops.tensors import accumulation_dtype

if TYPE_CHECKING:
    from ..nn import MemoryBank, NegativeSampler


@first_order
def bank_nce(
    anchor: Tensor,
    bank: Tensor | MemoryBank,
    index: Tensor,
    *,
    negatives: NegativeSampler | Tensor,
    log_z: Tensor | float,
    temperature: float = 0.07,
    anchor_offset: int = 0,
    plan: str = "auto",
    backend: str = "auto",
) -> Tensor:
    """CRD's NCE loss of each anchor against a bank (CRD, eqs. 16-18, as RepDistiller computes it).

    With p_k = exp(<x, m_k> / tau) / Z, c = K / N and m_0 the anchor's own bank row:

        loss_b = -log(p_0 / (p_0 + c + 1e-7)) - sum_k log(c / (p_k + c + 1e-7))

    evaluated as a sum of softplus terms that cannot overflow. Loss and anchor gradient come from one pass.

    Args:
        anchor: [B, D] float16, bfloat16, float32 or float64; need not be contiguous or of unit norm.
        bank: [N, D] of any of these dtypes, on the anchor's device.
        index: int64 or int32 [B], each anchor's own row: its positive; a sampler's `exclude` refers to it.
        negatives: a `NegativeSampler` with num_data = N, or integer [B, K] rows.
        log_z: log Z, a finite scalar tensor on the anchor's device or a float; NaN (unset) gives NaN.
        temperature: tau > 0.
        anchor_offset: global number of the first anchor (the lower ranks' batch sizes).
        plan: "auto", "gather" (cost ~ B*K*D) or "dense" (cost ~ B*N*D); results are equal to rounding.
        backend: "auto", "native", "triton" or "reference".
    Returns:
        [B] losses, differentiable with respect to `anchor`.
    Raises:
        TypeError, ValueError: a wrong argument; on the CPU also an index out of [0, N) or an anchor that is not finite.
        NotImplementedError: an explicit backend that has no such plan on this device.
    """
    rows, spec = bank_inputs(anchor, bank, index, negatives, anchor_offset, plan, backend)
    acc = accumulation_dtype(anchor, values_of(rows))
    temperature = checks.divisor("temperature", temperature, acc)
    if not isinstance(log_z, Tensor):
        log_z = torch.full((), checks.unset_or_finite("log_z", log_z, acc), dtype=acc, device=anchor.device)
    checks.tensor("log_z", log_z, shape=())
    checks.same_device(anchor=anchor, log_z=log_z)
    if log_z.device.type == "cpu" and not torch.compiler.is_compiling() and torch.isinf(log_z):
        raise ValueError(f"log_z: expected a number that is finite, or NaN, got {float(log_z)}")
    return directions.nce(anchor[None], [rows], index, log_z.detach()[None], spec, temperature, plan, backend)[0]


@first_order
def bank_mean_score(
    anchor: Tensor,
    bank: Tensor | MemoryBank,
    index: Tensor,
    *,
    negatives: NegativeSampler | Tensor,
    anchor_offset: int = 0,
    plan: str = "auto",
    backend: str = "auto",
) -> Tensor:
    """Mean score <x_b, m_k> over the negatives of each anchor: the second expectation of WCoRD's eq. (10).

    With a `MemoryBank`, a sampler of the whole pool (k="all" or expected=True) and plan="auto" this costs O(B * D): the
    bank then keeps the sums of its rows by class (the first such call makes them, outside `torch.compile`).
    Other arguments, dtypes and errors as for `bank_nce`. Returns [B], differentiable with respect to `anchor`.
    """
    rows, spec = bank_inputs(anchor, bank, index, negatives, anchor_offset, plan, backend)
    return directions.mean_score(anchor[None], [rows], index, spec, plan, backend, [bank])[0]


@first_order
def bank_log_z(
    anchor: Tensor,
    bank: Tensor | MemoryBank,
    index: Tensor,
    *,
    negatives: NegativeSampler | Tensor,
    temperature: float = 0.07,
    anchor_offset: int = 0,
    plan: str = "auto",
    backend: str = "auto",
) -> Tensor:
    """The batch's estimate of log Z: log of N * mean of exp(score / tau) over all anchors and their K + 1 scores.

    Arguments, dtypes and errors as for `bank_nce`. Returns a scalar tensor without gradient, in fp32
    (fp64 if the anchors or the bank are fp64).
    Source: CRD's constant Z, set by the first batch in RepDistiller.
    """
    rows, spec = bank_inputs(anchor, bank, index, negatives, anchor_offset, plan, backend)
    acc = accumulation_dtype(anchor, values_of(rows))
    temperature = checks.divisor("temperature", temperature, acc)
    unset = torch.full((1,), torch.nan, dtype=acc, device=anchor.device)
    return directions.log_z(unset, anchor[None], [rows], index, spec, temperature, plan, backend)[0]


@first_order
def bank_update_(
    bank: Tensor | MemoryBank, index: Tensor, rows: Tensor, momentum: float | None = None
) -> Tensor | MemoryBank:
    """Replace rows `index` of the bank by normalise(momentum * row + (1 - momentum) * rows), in place.

    All new rows are computed from the bank before the call, in fp32 (fp64 for an fp64 bank), the norm clamped at 1e-12.
    If an index occurs twice, its last row counts, on every device.

    Args:
        bank: contiguous [N, D] of a float dtype, or a `MemoryBank`.
        index: int64 or int32 [B], in [0, N).
        rows: [B, D] of a float dtype on the bank's device.
        momentum: in [0, 1]; by default a `MemoryBank`'s own, 0.5 for a tensor.
    Returns:
        `bank`.
    Raises:
        TypeError, ValueError: a wrong argument; on the CPU also an index out of range or a row that is not finite. Then
            nothing has been written. (On CUDA such a row is skipped and flagged, see `wcord_fast.check`.)
    """
    held = _bank_rows(bank)
    if not isinstance(bank, Tensor) and not hasattr(bank, "momentum"):
        raise TypeError(f"bank: expected a tensor [N, D] or a MemoryBank to update, got {type(bank).__name__}")
    if momentum is None:
        momentum = 0.5 if isinstance(bank, Tensor) else bank.momentum
    momentum = checks.fraction("momentum", momentum)
    matrix = values_of(held)
    if not matrix.is_contiguous():
        raise ValueError(f"bank: expected a contiguous tensor to update in place, got strides {matrix.stride()}")
    if not torch.compiler.is_compiling() and matrix.is_neg():
        raise ValueError("bank: expected a tensor that holds its own values to update in place, got a negated view")
    if matrix.requires_grad:
        raise ValueError("bank: expected a tensor without gradient; a bank is updated in place")
    checks.tensor("index", index, shape=("B",), dtypes=checks.INDICES)
    checks.tensor("rows", rows, shape=(index.shape[0], matrix.shape[1]))
    checks.same_device(bank=matrix, index=index, rows=rows)
    if isinstance(held, Shard):
        joined = sharded.join(rows.detach()[None], index)
        if index.device.type == "cpu":  # the values of all ranks, so that all raise or none
            checks.rows_in_range("index", joined.index, held.part.num_data)
            checks.finite_rows("rows", joined.anchors[0], Code.UPDATE_ROW)
        index, positions = sharded.held_rows(held, joined)
        rows = joined.anchors[0, positions]
        if len(positions) == 0:
            return bank
    directions.update_rows_(bank, matrix, index, rows, momentum)
    return bank


def draw_spec(negatives: NegativeSampler | Tensor, batch: int, num_data: int, anchor_offset: int = 0) -> DrawSpec:
    """The record of `negatives` for a batch on a bank of `num_data` rows."""
    if isinstance(negatives, Tensor):
        checks.integer("anchor_offset", anchor_offset, least=0, below=2**32)  # a sampler checks it in `spec`
        checks.tensor("negatives", negatives, shape=(batch, "K"), dtypes=checks.INDICES)
        return directions.given(negatives)
    if not hasattr(negatives, "spec"):
        raise TypeError(
            f"negatives: expected a NegativeSampler or an integer tensor [B, K], got {type(negatives).__name__}"
        )
    if negatives.num_data != num_data:
        raise ValueError(f"negatives: the sampler is for {negatives.num_data} rows but the bank has {num_data}")
    return negatives.spec(anchor_offset)


def bank_inputs(anchor, bank, index, negatives, anchor_offset, plan, backend) -> tuple[Tensor | Shard, DrawSpec]:
    """Check the arguments; return the bank's rows and the record of the negatives."""
    checks.choice("plan", plan, ("auto", *PLANS))
    checks.choice("backend", backend, ("auto", *BACKENDS))
    checks.tensor("anchor", anchor, shape=("B", "D"))
    matrix = _bank_rows(bank)
    pushed = None if torch.compiler.is_compiling() else getattr(bank, "pushed", None)  # of a queue
    if pushed is not None and pushed.device.type == "cpu" and pushed < bank.size:
        raise ValueError(
            f"bank: expected a full queue, got one with {int(pushed)} of {bank.size} rows pushed, the rest zeros; "
            "take the first slots of its rows"
        )
    if matrix.shape[1] != anchor.shape[1]:
        raise ValueError(f"anchor: expected width {matrix.shape[1]}, that of the bank, got {list(anchor.shape)}")
    checks.tensor("index", index, shape=(anchor.shape[0],), dtypes=checks.INDICES)
    spec = draw_spec(negatives, anchor.shape[0], matrix.shape[0], anchor_offset)
    rows = values_of(matrix)
    checks.same_device(anchor=anchor, bank=rows, index=index, negatives=spec.tables[0])
    return matrix, spec


def _bank_rows(bank) -> Tensor | Shard:
    if isinstance(bank, Tensor):
        return checks.tensor("bank", bank, shape=("N", "D"))
    if not hasattr(bank, "rows"):
        raise TypeError(f"bank: expected a tensor [N, D] or a MemoryBank, got {type(bank).__name__}")
    held = bank.held()
    checks.tensor("bank", values_of(held), shape=("N", "D"))
    return held


def values_of(rows: Tensor | Shard) -> Tensor:
    """The rows that this process holds."""
    return rows if isinstance(rows, Tensor) else rows.rows
