"""The bank ops in compiled code on the CPU (csrc/cpu/bank_*): signatures and results of `reference`.

`gather` is one call: draws, binning by bank tile, scores, critic terms and gradients. `dense` multiplies tiles with the
platform's matrix product, between native calls that weight the cells. README.md has the layout and the memory formula.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import native_module
from ..sampling.native import REPLACEMENTS, SOURCES, draw_args
from ..sampling.reference import pool_size
from ..sampling.spec import DrawSpec
from .reference import EPS, accumulate_dtype, counts

# The codes of csrc/cpu/bank_kernels.h and bank_ops.h.
OPS = {"nce": 0, "row_sum": 1, "log_z": 2}
ROWS = {"drawn": 0, "given": 1, "pool": 2}
BITS, COUNTS = 0, 1
MAX_ROWS = 2**31

# The dense plan's tile of bank rows, chunk of anchors, and bytes of mask. Tiles all have one height, a multiple of 64:
# with it a matrix product adds in the same order for any number of threads.
TILE_BYTES, MIN_TILE, MAX_TILE = 512 << 10, 64, 1024
CHUNK, MIN_CHUNK = 256, 64
MASK_BYTES = 8 << 20


def bank_nce(anchors, banks, index, log_z, spec, temperature, needs_grad, plan, draw_backend) -> tuple[Tensor, Tensor]:
    """CRD's NCE loss per anchor and its gradient: ([S, B], [S, B, D] or empty)."""
    call = Call("nce", anchors, banks, index, spec, needs_grad, temperature, log_z)
    loss = call.run(plan)
    return loss, loss.new_empty(0) if call.grad is None else call.grad


def bank_mean_score(anchors, banks, index, spec, needs_grad, plan, draw_backend) -> tuple[Tensor, Tensor]:
    """Mean score of the negatives and its gradient, the mean negative row: ([S, B], [S, B, D] or empty)."""
    call = Call("row_sum", anchors, banks, index, spec, True)
    mean = call.run(plan)
    return mean, call.grad if needs_grad and call.grad is not None else mean.new_empty(0)


def bank_log_z(anchors, banks, index, spec, temperature, plan, draw_backend) -> Tensor:
    """The batch's estimate of log Z, [S]: log of N times the mean over all anchors and their K_b + 1 scores of exp."""
    call = Call("log_z", anchors, banks, index, spec, False, temperature)
    total = call.run(plan).double().logsumexp(1)
    return (total - torch.log((call.charge + 1).sum()) + math.log(banks[0].shape[0])).to(call.dtype)


class Call:
    """One call of a bank op: its tensors, kept alive, and their addresses as the native `BankArgs`."""

    def __init__(
        self,
        op: str,
        anchors: Tensor,
        banks: list[Tensor],
        index: Tensor,
        spec: DrawSpec,
        needs_grad: bool,
        temperature: float = 1.0,
        log_z: Tensor | None = None,
    ):
        self.op, self.spec, self.threads = op, spec, torch.get_num_threads()
        self.native = native_module.module()
        self.dtype = accumulate_dtype(anchors, *banks)
        self.anchors = anchors.to(self.dtype).contiguous()  # [S, B, D]
        self.banks = [bank.contiguous() for bank in banks]
        self.index = index.contiguous()
        self.num_data, self.dim = banks[0].shape
        if self.num_data > MAX_ROWS:
            raise NotImplementedError(f"bank: the native CPU code takes up to 2^31 rows, got {self.num_data}")
        self.charge = counts(index, self.num_data, spec, torch.float64)  # [B], K_b
        pool = pool_size(index, self.num_data, spec).double()
        self.share = spec.k / pool if spec.expected else torch.ones_like(pool)  # [B], in fp64
        sides, batch = anchors.shape[:2]
        self.offset = None
        if log_z is not None:
            offset = torch.log(self.charge / self.num_data + EPS) + log_z.double()[:, None]  # u = s / tau - offset
            self.offset = offset.contiguous()
        self.value = torch.empty(sides, batch, 2, dtype=torch.float64)
        self.grad = torch.empty_like(self.anchors) if needs_grad else None
        rows = (ROWS["pool" if spec.whole_pool else "drawn"], 0, 0, 0)
        if spec.source == "given":
            given = spec.table("indices")
            self.given = given if given.stride(1) == 1 else given.contiguous()  # contrast_idx[:, 1:] is read in place
            rows = (ROWS["given"], self.given.data_ptr(), given.element_size(), self.given.stride(0))
        self.args = self.native.BankArgs(
            OPS[op],
            self.dtype == torch.float64,
            self._draw_args(),
            rows,
            [(bank.data_ptr(), native_module.DTYPES[bank.dtype]) for bank in self.banks],
            self.dim,
            self.anchors.data_ptr(),
            address(self.offset),
            1 / temperature,
            self.value.data_ptr(),
            address(self.grad),
            self.threads,
        )

    def run(self, plan: str) -> Tensor:
        """The op's result [S, B]; the gradient is in `self.grad`."""
        if plan == "gather":
            self._valid(self.native.cpu_bank_gather(self.args))
        else:
            self._dense()
        out = torch.empty(self.anchors.shape[:2], dtype=self.dtype)
        self.native.cpu_bank_finish(self.args, self.share.data_ptr(), self.charge.data_ptr(), out.data_ptr())
        return out

    def _draw_args(self) -> tuple[int, ...]:
        if self.spec.source != "given":
            return draw_args(self.index, self.num_data, self.spec)
        sizes = (self.index.shape[0], self.spec.k, self.num_data)
        codes = (0, SOURCES["none"], REPLACEMENTS["no"])
        return (self.index.data_ptr(), self.index.element_size(), *sizes, *codes, *(0,) * 7)

    def _valid(self, invalid: int) -> None:
        if invalid >= 0:
            raise ValueError(
                f"index[{invalid}] = {int(self.index[invalid])} with N = {self.num_data}: no {self.spec.k} rows can be "
                f"drawn for it (source={self.spec.source!r}, replacement={self.spec.replacement!r})"
            )

    def _dense(self) -> None:
        """Chunks of anchors against tiles of the bank; every temporary has a bound that knows neither B, N nor K."""
        self.value.zero_()
        if self.op == "log_z":
            self.value[..., 0] = -torch.inf
        if self.grad is not None:
            self.grad.zero_()
        batch, tall = self.anchors.shape[1], tile_rows(self.dim, self.num_data)
        masked = not self.spec.whole_pool
        weight = BITS if self.spec.replacement == "no" and self.spec.source not in ("given", "weighted") else COUNTS
        wide, span = mask_shape(batch, self.num_data, weight, tall) if masked else (CHUNK, self.num_data)
        per_word = 32 if weight == BITS else 1
        stride = -(-min(span, padded(self.num_data, tall)) // per_word)
        mask = torch.empty(min(wide, batch) * stride if masked else 0, dtype=torch.int32)
        cells = torch.empty(min(wide, batch), tall, dtype=self.dtype)
        tile = torch.zeros(tall, self.dim, dtype=self.dtype)
        for lo in range(0, batch, wide):
            hi = min(lo + wide, batch)
            for first in range(0, self.num_data, span):
                count = min(span, self.num_data - first)
                mask_args = self.native.MaskArgs(lo, hi, first, count, weight, mask.data_ptr(), stride)
                if masked:
                    self._valid(self.native.cpu_bank_mask(self.args, mask_args))
                for side, bank in enumerate(self.banks):
                    for row in range(first, first + count, tall):
                        rows = min(tall, first + count - row)
                        part = bank[row : row + rows]
                        if rows < tall or bank.dtype != self.dtype:
                            tile[:rows].copy_(part)
                            part = tile
                        self._tile(mask_args, side, lo, hi, row, rows, part, cells[: hi - lo])

    def _tile(self, mask_args, side: int, lo: int, hi: int, row: int, rows: int, tile: Tensor, cells: Tensor) -> None:
        if self.op != "row_sum":
            torch.mm(self.anchors[side, lo:hi], tile.T, out=cells)
        width = cells.shape[1]
        self.native.cpu_bank_cells(self.args, mask_args, side, row, rows, cells.data_ptr(), width)
        if self.grad is not None:
            self.grad[side, lo:hi].addmm_(cells, tile)


def gather_bytes(
    batch: int,
    num_data: int,
    k: int,
    dim: int,
    *,
    sides: int = 2,
    dtype: torch.dtype = torch.float32,
    needs_grad: bool = True,
    threads: int = 1,
) -> int:
    """What one gather call allocates beside its results, for banks of `dtype`; at most 16 MB + 8 * B * D."""
    native = native_module.module()
    wide, nowhere = dtype == torch.float64, 0
    draws = (nowhere, 8, batch, k, num_data, *(0,) * 10)
    banks = [(nowhere, native_module.DTYPES[dtype])] * sides
    grad = 64 if needs_grad else nowhere  # an address that is not null; nothing is read or written
    rows = (ROWS["drawn"], nowhere, 0, 0)
    return native.cpu_bank_gather_bytes(
        native.BankArgs(OPS["nce"], wide, draws, rows, banks, dim, nowhere, nowhere, 1.0, nowhere, grad, threads)
    )


def tile_rows(dim: int, num_data: int) -> int:
    """Bank rows in one matrix product of the dense plan: a multiple of 64."""
    rows = min(max(TILE_BYTES // (4 * dim) // 64 * 64, MIN_TILE), MAX_TILE)
    return min(rows, padded(num_data, 64))


def mask_shape(batch: int, num_data: int, weight: int, tall: int) -> tuple[int, int]:
    """(anchors, bank rows) of one mask of at most MASK_BYTES; the rows are whole tiles, one at the least."""
    per_row = 1 / 8 if weight == BITS else 4
    wide = min(max(int(MASK_BYTES / (per_row * padded(num_data, tall))), MIN_CHUNK), CHUNK, batch)
    span = max(int(MASK_BYTES / (per_row * wide)) // tall * tall, tall)
    return wide, min(span, padded(num_data, tall))


def padded(size: int, step: int) -> int:
    return -(-size // step) * step


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
