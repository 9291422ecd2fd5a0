"""The contrast ops in Triton, for CUDA tensors: signatures and results of `reference`.

A pass over the rows is one launch for each direction (triton_kernels.py); the terms of the positives, O(A D), are those
of the reference. No host sync, CUDA-graph capturable once compiled. triton itself is imported at the first call.
`torch.get_float32_matmul_precision()` decides how many bf16 terms stand for an fp32 factor, as in ops/bank/triton.py.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import triton_module
from ..bank import triton_launch
from ..bank.triton_launch import BLOCK_D, DTYPE_TERMS, MAX_ROWS, padded
from ..precision import matmul_precision
from .reference import Contrast, Gradients, Totals, Values, check_values, pulled, widened, with_positives

W_TERMS = 2  # of a derivative dL/du: 2^-18 of each at most is left


def unavailable_reason(dtypes: tuple[torch.dtype, ...], num_rows: int) -> str | None:
    """Why tensors with these dtypes and at most `num_rows` rows are outside what the kernels do, or None."""
    for dtype in dtypes:
        if dtype not in DTYPE_TERMS:
            return f"the Triton kernels take float32, bfloat16 and float16, got {dtype}"
    if num_rows > MAX_ROWS:
        return f"the Triton kernels take up to {MAX_ROWS} rows, got {num_rows}"
    return None


def values(c: Contrast) -> Values:
    """As `reference.values`."""
    finite = check_values(c)
    result = with_positives(widened(c), tuple(_Strip(strip).negatives() for strip in _strips(c)))
    return result if finite is None else result._replace(value=torch.where(finite, result.value, torch.nan))


def gradients(
    c: Contrast, weight: Tensor, row_weight: Tensor | None, known: Totals, need_anchors: bool, need_positives: bool
) -> Gradients:
    """As `reference.gradients`."""
    weight = weight.float()
    row_weight = None if row_weight is None else row_weight.float()
    passes = []
    if need_anchors or not (c.both and need_positives):
        passes.append(_Strip(_strips(c)[0]).gradients(weight, row_weight, known.total, known.row_total))
    if c.both and need_positives:
        assert row_weight is not None  # the rows are anchors
        passes.append(_Strip(_strips(c)[1]).gradients(row_weight, weight, known.row_total, known.total))
    grad, slope_sum = passes[0]
    positive_grad = passes[-1][0] if c.both else torch.zeros_like(grad)
    pull = weight * known.slope
    return pulled(
        widened(c), pull, grad if need_anchors else None, positive_grad if need_positives else None, slope_sum
    )


def _strips(c: Contrast) -> list[Contrast]:
    """Each direction as a contrast of its own, in which the rows have no losses."""
    if not c.both:
        return [c]
    swapped = c._replace(
        anchors=c.rows,
        positives=c.anchors,
        rows=c.anchors,
        anchor_label=c.row_label,
        row_label=c.anchor_label,
        anchor_index=c.row_index,
        row_index=c.anchor_index,
    )
    return [c._replace(both=False), swapped._replace(both=False)]


class _Strip:
    """The launches for one direction."""

    def __init__(self, c: Contrast):
        limit = {"highest": 3, "high": 2, "medium": 1}[matmul_precision()]
        anchors, rows = c.anchors.contiguous(), triton_launch.by_rows(c.rows)
        self.device, (self.batch, self.dim), self.num_rows = anchors.device, anchors.shape, len(rows)
        x_terms, m_terms = (min(DTYPE_TERMS[t.dtype], limit) for t in (anchors, rows))
        self.blocks = triton_launch.blocks(
            triton_launch.capability(self.device), self.dim, self.batch, m_terms, counts=False
        )
        label, row_label, index, row_index = (anchors if t is None else t.long().contiguous() for t in c[8:])
        self.softmax = c.critic == "infonce"
        self.args: dict[str, Any] = {
            "terms_ptr": triton_launch.bf16_terms(anchors, x_terms),
            "rows_ptr": rows,
            "row_stride": rows.stride(0),
            "STRIDE_UNIT": math.gcd(rows.stride(0), 16),
            "label_ptr": label,
            "row_label_ptr": row_label,
            "index_ptr": index,
            "row_index_ptr": row_index,
            "scale_ptr": self._scalar(c.scale),
            "bias_ptr": self._scalar(c.bias),
            "batch": self.batch,
            "first_row": max(c.first, 0),
            "num_rows": self.num_rows,
            "D": self.dim,
            "BLOCK_D": min(BLOCK_D, padded(self.dim)),
            "BLOCK_B": self.blocks.block_b,
            "BLOCK_N": self.blocks.block_n,
            "SOFTMAX": self.softmax,
            "HAS_FIRST": c.first >= 0,
            "HAS_LABEL": c.anchor_label is not None,
            "HAS_INDEX": c.anchor_index is not None,
            "X_TERMS": x_terms,
            "M_TERMS": m_terms,
            "W_TERMS": min(W_TERMS, limit),
            "LIMIT": limit,
            "INTERPRET": triton_module.interpreted(),
        }

    def negatives(self) -> Tensor:
        """fp32 [A]: log-sum-exp of the scores of an anchor's negatives (-inf without one), or sum of their softplus."""
        from .triton_kernels import values_fwd_kernel

        grid = self._grid(1)
        total = self._scratch(grid)
        top = self._scratch(grid) if self.softmax else total
        self._walk(values_fwd_kernel, grid, top_ptr=top, sum_ptr=total)
        if not self.softmax:
            return total.sum(0) * math.log(2)
        return (top * math.log(2) + total.log()).logsumexp(0)

    def gradients(
        self, weight: Tensor, row_weight: Tensor | None, total: Tensor, row_total: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sums over the negatives of dL/du times the row, fp32 [A, D], and of dL/du over all, a scalar."""
        from .triton_kernels import gradients_fwd_kernel

        grid = self._grid(-(-self.dim // BLOCK_D))
        grad, slope = self._scratch(grid, self.dim), self._scratch(grid)
        given = {"weight": weight, "row_weight": row_weight, "total": total, "row_total": row_total}
        given = {f"{name}_ptr": weight if t is None else t.float().contiguous() for name, t in given.items()}
        more = {**given, "HAS_ROW_WEIGHT": row_weight is not None}
        self._walk(gradients_fwd_kernel, grid, grad_ptr=grad, slope_ptr=slope, **more)
        return grad.sum(0), slope.sum()

    def _scalar(self, value: Tensor | float) -> Tensor:
        if isinstance(value, Tensor):
            return value.float()
        return torch.full((), value, dtype=torch.float32, device=self.device)

    def _grid(self, columns: int) -> tuple[int, int, int]:
        """(blocks of anchors times blocks of columns, splits of the rows, 1): what fills the device once."""
        tall = -(-self.batch // self.blocks.block_b) * columns
        tiles = -(-self.num_rows // self.blocks.block_n)
        wanted = self.blocks.per_sm * triton_launch.processors(self.device) // tall
        height = -(-tiles // max(1, min(wanted, tiles))) * self.blocks.block_n
        self.args["split_rows"] = height
        return tall, -(-self.num_rows // height), 1

    def _scratch(self, grid: tuple[int, int, int], *tail: int) -> Tensor:
        """fp32 [splits, A, *tail]."""
        return torch.empty((grid[1], self.batch, *tail), dtype=torch.float32, device=self.device)

    def _walk(self, kernel, grid: tuple[int, int, int], **args) -> None:
        options = {"num_warps": self.blocks.warps, "num_stages": self.blocks.stages}
        triton_launch.launch(kernel, grid, self.args | args, self.device, **options)
