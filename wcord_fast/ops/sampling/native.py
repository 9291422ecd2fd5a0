"""The draws in compiled code: csrc/cpu/draws.cpp for CPU tensors, csrc/cuda/draws.cu for CUDA tensors.

Both come from csrc/common/draw.h, and equal `reference.draw` bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import native_module, status
from .spec import TABLES, DrawSpec


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
    on_cpu = index.device.type == "cpu"
    record = native.Draw(
        **draw_fields(index, num_data, spec),
        out=out.data_ptr(),
        **(native_module.on_cpu() if on_cpu else native_module.on_cuda(index)),
    )
    if on_cpu:
        invalid = native.cpu_draw(record)
        if invalid >= 0:
            raise nothing_to_draw(index, invalid, num_data, spec)
        return out
    native_module.check_launch("draw", native.cuda_draw(record))
    status.check_if_enabled(index.device)
    return out


def draw_fields(index: Tensor, num_data: int, spec: DrawSpec) -> dict[str, int]:
    """The fields of the `DrawSpec` of csrc/common/draw.h; `index` and the tables must outlive the call."""
    native = native_module.module()
    tables = zip(TABLES[spec.source], spec.tables, strict=True)
    return {
        **index_fields(index, num_data),
        "source": native.SOURCES[spec.source],
        "replacement": native.REPLACEMENTS[spec.replacement],
        "num_draws": spec.k,
        "anchor_offset": spec.anchor_offset,
        **{name: table.data_ptr() for name, table in tables},
    }


def index_fields(index: Tensor, num_data: int) -> dict[str, int]:
    """Those of them that every source has: the anchors' own rows, and their sizes."""
    return {
        "index": index.data_ptr(),
        "index_bytes": index.element_size(),
        "num_anchors": index.shape[0],
        "num_data": num_data,
    }


def nothing_to_draw(index: Tensor, anchor: int, num_data: int, spec: DrawSpec) -> ValueError:
    """The error of an anchor that has nothing valid to draw from."""
    return ValueError(
        f"index[{anchor}] = {int(index[anchor])} with N = {num_data}: no {spec.k} rows can be drawn for it "
        f"(source={spec.source!r}, replacement={spec.replacement!r})"
    )
