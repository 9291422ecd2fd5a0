"""The draws in compiled code: csrc/cpu/draws.cpp for CPU tensors, csrc/cuda/draws.cu for CUDA tensors.

Both come from csrc/common/draw.h, and equal `reference.draw` bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import native_module, status
from .spec import TABLES, DrawSpec

# The codes of csrc/common/draw.h.
SOURCES = {"none": 0, "self": 1, "class": 2, "weighted": 3}
REPLACEMENTS = {"no": 0, "yes": 1, "auto": 2}
_POINTERS = ("state", "label", "order", "rank", "class_start", "threshold", "alias")


def draw(index: Tensor, num_data: int, spec: DrawSpec) -> Tensor:
    """Rows of the K negatives of each anchor.

    Args:
        index: int64 or int32 [B], each anchor's own row in [0, N).
        num_data: N.
        spec: which rows; `spec.whole_pool` must be False and `spec.source` not "given".
    Returns:
        int64 [B, K] on the device of `index`; column j is draw(j). On CUDA an anchor that has nothing valid to draw
        from gets -1 in its row and sets the INDEX bit of the device's status word.
    Raises:
        ValueError: on the CPU, such an anchor: index out of range, an empty pool, or K above it without replacement.
    """
    native = native_module.module()
    index = index.contiguous()
    out = torch.empty((index.shape[0], spec.k), dtype=torch.int64, device=index.device)
    if out.numel() == 0:
        return out
    args = draw_args(index, num_data, spec)
    if index.device.type == "cpu":
        invalid = native.cpu_draw(args, out.data_ptr(), native_module.threads())
        if invalid >= 0:
            raise ValueError(
                f"index[{invalid}] = {int(index[invalid])} with N = {num_data}: no {spec.k} rows can be drawn for it "
                f"(source={spec.source!r}, replacement={spec.replacement!r})"
            )
        return out
    word = status.word(index.device)
    code = native.cuda_draw(*native_module.stream_of(index), *args, out.data_ptr(), word.data_ptr())
    native_module.check_launch("draw", code)
    status.check_if_asked(index.device)
    return out


def draw_args(index: Tensor, num_data: int, spec: DrawSpec) -> tuple[int, ...]:
    """The integers that stand for `DrawArgs` of csrc/common/draw.h; `index` and the tables must outlive the call."""
    tables = dict(zip(TABLES[spec.source], spec.tables, strict=True))
    pointers = (tables[name].data_ptr() if name in tables else 0 for name in _POINTERS)
    return (
        index.data_ptr(),
        index.element_size(),
        index.shape[0],
        spec.k,
        num_data,
        spec.anchor_offset,
        SOURCES[spec.source],
        REPLACEMENTS[spec.replacement],
        *pointers,
    )
