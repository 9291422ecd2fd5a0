"""InfoNCE and the sigmoid loss of anchors against a memory bank: `bank_nce` with other critics, without Z.

The arguments, samplers, dtypes, plans and errors are those of `bank_nce`, see bank.py; a `MemoryBank` or `FeatureQueue`
with shard="rank" is collective here as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..ops import checks
from ..ops.bank import directions
from ..ops.first_order import first_order
from ..ops.tensors import accumulation_dtype
from .bank import bank_inputs, values_of

if TYPE_CHECKING:
    from ..nn import FeatureQueue, MemoryBank, NegativeSampler


@first_order
def bank_infonce(
    anchor: Tensor,
    bank: Tensor | MemoryBank | FeatureQueue,
    index: Tensor,
    *,
    negatives: NegativeSampler | Tensor,
    temperature: float = 0.07,
    positive: Tensor | None = None,
    anchor_offset: int = 0,
    plan: str = "auto",
    backend: str = "auto",
) -> Tensor:
    """InfoNCE of each anchor against a bank: the softmax cross entropy of its positive (CPC, MoCo).

        loss_b = -s_0 / tau + log sum_{k=0..K} exp(s_k / tau),    s_k = <x_b, m_k>

    Loss and anchor gradient come from one pass over the negatives; no B x K scores are kept on the native backend. With
    `expected=True` the sum over the negatives is its expectation over K draws.

    Args:
        anchor: [B, D] float16, bfloat16, float32 or float64; need not be contiguous or of unit norm.
        bank: [N, D] of any of these dtypes, on the anchor's device, a `MemoryBank`, or a full `FeatureQueue`. It
            carries no gradient.
        index: int64 or int32 [B], each anchor's own row: its positive by default; a sampler's `exclude` refers to it.
        negatives: a `NegativeSampler` with num_data = N, or integer [B, K] rows.
        temperature: tau > 0.
        positive: [B, D] rows of any of these dtypes, with gradient; None: the bank's rows `index`.
        anchor_offset: global number of the first anchor (the lower ranks' batch sizes).
        plan: "auto", "gather" (cost ~ B*K*D) or "dense" (cost ~ B*N*D); results are equal to rounding.
        backend: "auto", "native" (on CUDA the gather plan), "triton" (CUDA tensors, dense plan) or "reference".
    Returns:
        [B] losses in fp32 (fp64 if a tensor is fp64), differentiable with respect to `anchor` and `positive`.
    Raises:
        TypeError, ValueError: a wrong argument; on the CPU also an index out of [0, N), or an anchor or positive that
            is not finite.
        NotImplementedError: an explicit backend that has no such plan on this device.
    """
    rows, spec = bank_inputs(anchor, bank, index, negatives, anchor_offset, plan, backend)
    positive_rows = _positive_rows(anchor, positive)
    temperature = checks.divisor("temperature", temperature, accumulation_dtype(anchor, values_of(rows)))
    return directions.infonce(anchor[None], [rows], index, positive_rows, spec, temperature, plan, backend)[0]


@first_order
def bank_sigmoid(
    anchor: Tensor,
    bank: Tensor | MemoryBank | FeatureQueue,
    index: Tensor,
    *,
    negatives: NegativeSampler | Tensor,
    scale: Tensor | float = 10.0,
    bias: Tensor | float = -10.0,
    positive: Tensor | None = None,
    anchor_offset: int = 0,
    plan: str = "auto",
    backend: str = "auto",
) -> Tensor:
    """The sigmoid loss (SigLIP) of each anchor against a bank.

        loss_b = softplus(-(scale * s_0 + bias)) + sum_{k=1..K} softplus(scale * s_k + bias),    s_k = <x_b, m_k>

    Args:
        scale, bias: finite numbers, or scalar tensors of a float dtype on the anchor's device, with gradient.
    Returns:
        [B] losses in fp32 (fp64 if `anchor`, `bank` or `positive` is), differentiable with respect to `anchor`,
        `positive`, `scale` and `bias`.

    Other arguments and errors as for `bank_infonce`.
    """
    rows, spec = bank_inputs(anchor, bank, index, negatives, anchor_offset, plan, backend)
    positive_rows = _positive_rows(anchor, positive)
    acc = accumulation_dtype(anchor, values_of(rows))
    scalars = _scalar("scale", scale, anchor, acc), _scalar("bias", bias, anchor, acc)
    return directions.sigmoid(anchor[None], [rows], index, positive_rows, *scalars, spec, plan, backend)[0]


def _positive_rows(anchor: Tensor, positive: Tensor | None) -> Tensor | None:
    """`positive` [B, D], checked, as [1, B, D]; None stays None."""
    if positive is None:
        return None
    checks.tensor("positive", positive, shape=tuple(anchor.shape))
    checks.same_device(anchor=anchor, positive=positive)
    return positive[None]


def _scalar(name: str, value: Tensor | float, anchor: Tensor, acc: torch.dtype) -> Tensor:
    """`value` as a scalar tensor on the anchor's device."""
    if isinstance(value, Tensor):
        checks.tensor(name, value, shape=())
        checks.same_device(anchor=anchor, **{name: value})
        return value
    return torch.full((), checks.finite(name, value, acc), dtype=torch.float64, device=anchor.device)
