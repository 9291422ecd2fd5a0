"""The rows that a batch scores: explicit indices as given, draws by the chosen backend."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .. import checks, dispatch, library
from . import native, reference
from .spec import DrawSpec

_BACKENDS = {"reference": reference.draw, "native": native.draw}


def draw(index: Tensor, num_data: int, spec: DrawSpec, backend: str = "auto") -> Tensor:
    """int64 [B, K] rows; `index` int64 [B] has been checked. Bit-identical on every backend."""
    if spec.source == "given":
        return spec.table("indices").long()
    choice = dispatch.resolve("draw", device=index.device, backend=backend)
    return _BACKENDS[choice.backend](index, num_data, spec)


def anchor_slice(spec: DrawSpec, lo: int, hi: int) -> DrawSpec:
    """`spec` for anchors [lo, hi) of the batch only."""
    if spec.source == "given":
        return replace(spec, tables=[spec.table("indices")[lo:hi]])
    return replace(spec, anchor_offset=spec.anchor_offset + lo)


def _draw(index, num_data, tables, source, k, replacement, anchor_offset, backend):
    spec = DrawSpec(source, k, replacement, False, anchor_offset, tables)
    checks.rows_in_range("index", index, num_data)
    return draw(index.long(), num_data, spec, backend)


def _draw_fake(index, num_data, tables, source, k, replacement, anchor_offset, backend):
    return torch.empty((index.shape[0], k), dtype=torch.int64, device=index.device)


draw_op = library.register(
    "draw(Tensor index, SymInt num_data, Tensor[] tables, str source, SymInt k, str replacement, SymInt anchor_offset, "
    "str backend) -> Tensor",
    _draw,
    _draw_fake,
)
