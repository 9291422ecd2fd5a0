"""The bank ops in compiled code on the CPU (csrc/cpu/bank_*): signatures and results of `reference`.

Each plan is one native call: draws, scores, critic terms and gradients of all directions. README.md has the layouts and
the memory formulas.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import native_module
from ..sampling.native import REPLACEMENTS, SOURCES, draw_args
from ..sampling.reference import pool_size
from ..sampling.spec import DrawSpec
from .part import Part, whole
from .reference import EPS, accumulate_dtype, counts, normalised

# The codes of csrc/cpu/bank_kernels.h and bank_ops.h.
OPS = {"nce": 0, "row_sum": 1, "log_z": 2}
ROWS = {"drawn": 0, "given": 1, "pool": 2}
MAX_ROWS = 2**31


def bank_nce(
    anchors, banks, index, log_z, spec, temperature, needs_grad, plan, draw_backend, part: Part | None = None
) -> tuple[Tensor, Tensor]:
    """CRD's NCE loss per anchor and its gradient: ([S, B], [S, B, D] or empty)."""
    call = Call("nce", anchors, banks, index, spec, needs_grad, temperature, log_z, part)
    loss = call.run(plan)
    return loss, call.grad


def bank_mean_score(
    anchors, banks, index, spec, needs_grad, plan, draw_backend, part: Part | None = None
) -> tuple[Tensor, Tensor]:
    """Mean score of the negatives and its gradient, the mean negative row: ([S, B], [S, B, D] or empty)."""
    call = Call("row_sum", anchors, banks, index, spec, True, part=part)
    mean = call.run(plan)
    return mean, call.grad if needs_grad and call.grad is not None else mean.new_empty(0)


def bank_log_z(anchors, banks, index, spec, temperature, plan, draw_backend) -> Tensor:
    """The batch's estimate of log Z, [S]: log of N times the mean over all anchors and their K_b + 1 scores of exp."""
    total = bank_log_sum_exp(anchors, banks, index, spec, temperature, plan, draw_backend)
    return normalised(total, index, banks[0].shape[0], spec).to(accumulate_dtype(anchors, *banks))


def bank_log_sum_exp(anchors, banks, index, spec, temperature, plan, draw_backend, part: Part | None = None) -> Tensor:
    """log of the sum of exp(score / tau) over all anchors and their K_b + 1 scores, fp64 [S]."""
    call = Call("log_z", anchors, banks, index, spec, False, temperature, part=part)
    return call.run(plan).double().logsumexp(1)


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
        part: Part | None = None,
    ):
        part = part or whole(banks)
        self.op, self.spec, self.threads = op, spec, native_module.threads()
        self.native = native_module.module()
        self.dtype = accumulate_dtype(anchors, *banks)
        self.anchors = anchors.to(self.dtype).contiguous()  # [S, B, D]
        self.banks = [bank.contiguous() for bank in banks]
        self.index = index.contiguous()
        self.num_data, self.dim = part.num_data, banks[0].shape[1]
        if self.num_data > MAX_ROWS:
            raise NotImplementedError(f"bank: the native CPU code takes up to 2^31 rows, got {self.num_data}")
        self.charge = counts(index, self.num_data, spec, torch.float64)  # [B], K_b
        pool = pool_size(index, self.num_data, spec).double()
        self.share = spec.k / pool if spec.expected else torch.ones_like(pool)  # [B], in fp64
        sides, batch = anchors.shape[:2]
        self.offset = None if log_z is None else torch.log(self.charge / self.num_data + EPS) + log_z.double()[:, None]
        self.value = torch.empty(sides, batch, 2, dtype=torch.float64)
        self.grad = torch.empty_like(self.anchors) if needs_grad else self.anchors.new_empty(0)
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
            (part.first, banks[0].shape[0]),
            [(bank.data_ptr(), native_module.DTYPES[bank.dtype]) for bank in self.banks],
            self.dim,
            self.anchors.data_ptr(),
            0 if self.offset is None else self.offset.data_ptr(),
            1 / temperature,
            self.value.data_ptr(),
            self.grad.data_ptr() if needs_grad else 0,
            self.threads,
        )

    def run(self, plan: str) -> Tensor:
        """The op's result [S, B]; the gradient is in `self.grad`."""
        walk = self.native.cpu_bank_gather if plan == "gather" else self.native.cpu_bank_dense
        self._valid(walk(self.args))
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
        native.BankArgs(
            OPS["nce"], wide, draws, rows, (0, num_data), banks, dim, nowhere, nowhere, 1.0, nowhere, grad, threads
        )
    )
