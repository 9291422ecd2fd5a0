"""Which bank rows an anchor's draws hit, as a matrix that a dense pass can read tile by tile."""

from __future__ import annotations

import torch
from torch import Tensor

from ..sampling import draws
from ..sampling.spec import DrawSpec


def draw_mask(index: Tensor, num_data: int, spec: DrawSpec, backend: str = "auto") -> Tensor:
    """int32 [B, ceil(N / 32)]: bit n & 31 of word n >> 5 says that row n was drawn; draws without replacement only.

    Bits at and beyond N are zero.
    """
    rows = draws.draw(index, num_data, spec, backend)  # distinct within an anchor, so adding bits sets them
    words = torch.zeros(index.shape[0], (num_data + 31) // 32, dtype=torch.int64, device=index.device)
    return words.scatter_add_(1, rows >> 5, 1 << (rows & 31)).to(torch.int32)


def draw_counts(index: Tensor, num_data: int, spec: DrawSpec, backend: str = "auto") -> Tensor:
    """int32 [B, N]: how often each row was drawn, or given."""
    rows = draws.draw(index, num_data, spec, backend)
    count = torch.zeros(index.shape[0], num_data, dtype=torch.int32, device=index.device)
    return count.scatter_add_(1, rows, torch.ones_like(rows, dtype=torch.int32))
