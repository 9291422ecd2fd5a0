"""The mean row of each anchor's whole pool, from a bank's class sums: O(B * D) whatever N is.

With it the mean score of K = "all" (or of the expectation of K draws) is one dot product per anchor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks, library
from ..sampling.reference import pool_size
from ..sampling.spec import DrawSpec
from ..status import Code
from ..tensors import accumulation_dtype
from .class_sums import excluded_rows


def pool_mean(
    anchors: Tensor,  # [S, B, D]
    banks: list[Tensor],  # S x [N, D]
    sums: list[Tensor],  # S x fp64 [G, D], see ClassSums
    index: Tensor,  # [B]
    tables: list[Tensor],
    source: str,
    k: int,
) -> Tensor:
    """Mean row of each anchor's pool, [S, B, D] in the accumulation dtype; NaN for an anchor flagged on a device."""
    num_data = banks[0].shape[0]
    ok = checks.rows_in_range("index", index, num_data)
    index = torch.where(ok, index, 0).long()
    ok = ok & checks.finite_rows("anchor", anchors, Code.ANCHOR)
    spec = DrawSpec(source, k, "no", False, 0, tables)
    size = pool_size(index, num_data, spec)[:, None]  # [B, 1]
    means = []
    for bank, by_class in zip(banks, sums, strict=True):
        pool = by_class.sum(0)
        if source == "self":
            pool = pool - bank[index].to(torch.float64)
        elif source == "class":
            pool = pool - excluded_rows(by_class, bank[index], spec.table("label")[index], size == num_data - 1)
        means.append((pool / size).expand(len(index), -1))
    mean = torch.stack(means).to(accumulation_dtype(anchors, *banks))
    return mean if ok.device.type == "cpu" else torch.where(ok[..., None], mean, torch.nan)


pool_mean_op = library.register(
    "bank_pool_mean(Tensor anchors, Tensor[] banks, Tensor[] sums, Tensor index, Tensor[] tables, str source, SymInt k)"
    " -> Tensor",
    pool_mean,
    lambda anchors, banks, *rest: anchors.new_empty(anchors.shape, dtype=accumulation_dtype(anchors, *banks)),
)
