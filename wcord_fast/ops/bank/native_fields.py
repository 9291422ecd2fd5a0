"""Negatives and banks as fields of native records: the `NegativeSpec` and `BankScore` of csrc/common."""

from __future__ import annotations

from torch import Tensor

from .. import native_module
from ..sampling.native import draw_fields, index_fields
from ..sampling.spec import DrawSpec
from .part import Part

MAX_ROWS = 2**32  # the native code counts rows in 32 bits


def negative_fields(index: Tensor, spec: DrawSpec, part: Part, num_rows: int) -> tuple[dict[str, int], Tensor | None]:
    """(fields, a tensor to keep until the call has read it); `index` must be contiguous and outlive the call too.

    The banks hold the `num_rows` rows of the `part`. Explicit rows need not be contiguous: `contrast_idx[:, 1:]` is
    read in place.

    Raises:
        ValueError: N is 2^32 or more.
    """
    if part.num_data >= MAX_ROWS:
        raise ValueError(f"bank: expected fewer than 2^32 rows, got {part.num_data}")
    native = native_module.module()
    held = {"first_row": part.first, "num_rows": num_rows}
    if spec.source != "given":
        kind, draws = "drawn", draw_fields(index, part.num_data, spec)
        if spec.whole_pool:
            kind, draws["num_draws"] = "pool", 1
        return {**draws, "negatives": native.NEGATIVES[kind], **held}, None
    rows = spec.table("indices")
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    nothing_drawn = {
        "source": native.SOURCES["none"],
        "replacement": native.REPLACEMENTS["no"],
        "num_draws": rows.shape[1],
        "anchor_offset": 0,
    }
    given = {
        "negatives": native.NEGATIVES["given"],
        "given": rows.data_ptr(),
        "given_bytes": rows.element_size(),
        "given_stride": rows.stride(0),
    }
    return {**index_fields(index, part.num_data), **nothing_drawn, **given, **held}, rows


def bank_fields(banks: list[Tensor]) -> dict[str, int]:
    """The fields of the banks, one each for every direction."""
    fields = {}
    for s, bank in enumerate(banks):
        fields[f"bank_{s}"] = bank.data_ptr()
        fields[f"bank_dtype_{s}"] = native_module.dtype_code(bank.dtype)
        fields[f"bank_stride_{s}"] = bank.stride(0)
    return fields
