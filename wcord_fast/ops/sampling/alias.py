"""Alias tables for weighted draws (Walker 1977, Vose 1991): O(N) to build, O(1) per draw."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .. import native_module


def alias_table(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Threshold (int64 [N], the bits of a uint64 fraction of 2^64) and alias (int32 [N]) of `weights` [N] >= 0.

    A draw falls in column i uniformly and keeps it when its fractional part is below the threshold, else takes
    alias[i]. Full columns alias to themselves, so 2^64 - 1 standing for 1 loses nothing. Made by the native module
    (csrc/cpu/alias.cpp) where there is one; by Python otherwise, with the same bits.
    """
    w = weights.detach().to("cpu", torch.float64).numpy()
    w = w / w.max()  # the sum can neither overflow nor vanish
    share = w * (len(w) / w.sum())
    if native_module.unavailable_reason("cpu") is not None:
        return _by_python(share)
    threshold, alias = (torch.empty(len(w), dtype=d, device="cpu") for d in (torch.int64, torch.int32))
    native = native_module.module()
    native.cpu_alias_table(share=share.ctypes.data, n=len(w), threshold=threshold.data_ptr(), alias=alias.data_ptr())
    return threshold, alias


def _by_python(weights: np.ndarray) -> tuple[Tensor, Tensor]:
    """The alias table of `weights` [N] with mean 1, in plain Python."""
    share = weights.tolist()
    alias = list(range(len(share)))
    small = [i for i, s in enumerate(share) if s < 1.0]
    large = [i for i, s in enumerate(share) if s >= 1.0]
    while small and large:
        low, high = small.pop(), large[-1]
        alias[low] = high
        share[high] -= 1.0 - share[low]
        if share[high] < 1.0:
            small.append(large.pop())
    heaviest = int(weights.argmax())
    for i in small + large:  # what is left differs from 1 by rounding only, unless its weight is 0
        share[i], alias[i] = (1.0, i) if weights[i] > 0 else (0.0, heaviest)
    top = float(np.nextafter(2.0**64, 0))
    threshold = np.minimum(np.asarray(share) * 2.0**64, top).astype(np.uint64)
    threshold[np.asarray(share) >= 1.0] = np.uint64(2**64 - 1)
    return torch.from_numpy(threshold.view(np.int64)), torch.tensor(alias, dtype=torch.int32, device="cpu")
