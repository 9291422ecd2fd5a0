"""Rows without a label, which a term on the labels leaves out as the cross entropy does."""

from __future__ import annotations

from torch import Tensor


def labelled_mean(values: Tensor, labels: Tensor) -> Tensor:
    """Mean of `values` [B] over the rows whose label is not below 0; 0 if there are none. Nothing is synchronised."""
    known = labels >= 0
    fraction = known.sum().clamp_min(1).to(values.dtype) / len(labels)  # 1 for B of B, which keeps the mean's bits
    return values.where(known, 0).mean() / fraction
