"""The bank ops in compiled code on the CPU (csrc/cpu/bank_*): signatures and results of `reference`.

A call is one native call: draws, scores, critic terms and gradients of up to two directions. README.md has the layouts
and the memory formulas.
"""

from __future__ import annotations

import math
from typing import Any, NoReturn

import torch
from torch import Tensor

from .. import checks, native_module
from ..sampling.native import nothing_to_draw
from ..sampling.spec import DrawSpec
from ..status import Code
from ..tensors import accumulation_dtype
from .native_fields import bank_fields, negative_fields
from .part import Part, whole
from .reference import EPS, normalised, with_positives


def bank_nce(
    anchors, banks, index, log_z, spec, temperature, needs_grad, plan, draw_backend, part: Part | None = None
) -> tuple[Tensor, Tensor]:
    """CRD's NCE loss per anchor and its gradient: ([S, B], [S, B, D] or empty)."""
    return _score("nce", anchors, banks, index, spec, plan, part, needs_grad, temperature, log_z)[:2]


def bank_mean_score(
    anchors, banks, index, spec, needs_grad, plan, draw_backend, part: Part | None = None
) -> tuple[Tensor, Tensor]:
    """Mean score of the negatives and its gradient, the mean negative row: ([S, B], [S, B, D] or empty)."""
    mean, grad, _ = _score("mean_score", anchors, banks, index, spec, plan, part, True)
    return mean, grad if needs_grad else mean.new_empty(0)


def bank_infonce(
    anchors, banks, index, spec, temperature, needs_grad, plan, draw_backend, part: Part | None = None
) -> tuple[Tensor, Tensor]:
    """log-sum-exp of each anchor's negative scores / tau, and their softmax mean: (fp64 [S, B], [S, B, D] or empty)."""
    _, grad, sums = _score("infonce", anchors, banks, index, spec, plan, part, needs_grad, temperature)
    return sums[..., 0], grad


def bank_sigmoid(
    anchors, banks, index, scale, bias, spec, needs_grad, plan, draw_backend, part: Part | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over the negatives of softplus(u), sigmoid(u), sigmoid(u) * row: (fp64 [S, B] twice, [S, B, D] or empty)."""
    slope = float(scale)
    tau = 1 / slope if slope else math.inf
    _, grad, sums = _score("sigmoid", anchors, banks, index, spec, plan, part, needs_grad, tau, bias=float(bias))
    return sums[..., 0], sums[..., 1], grad


def bank_log_z(anchors, banks, index, spec, temperature, plan, draw_backend) -> Tensor:
    """The batch's estimate of log Z, [S]: log of N times the mean over all anchors and their K_b + 1 scores of exp."""
    total = bank_log_sum_exp(anchors, banks, index, spec, temperature, plan, draw_backend)
    return normalised(total, index, banks[0].shape[0], spec).to(accumulation_dtype(anchors, *banks))


def bank_log_sum_exp(anchors, banks, index, spec, temperature, plan, draw_backend, part: Part | None = None) -> Tensor:
    """log of the sum of exp(score / tau) over all anchors and their K_b + 1 scores, fp64 [S]."""
    part = part or whole(banks)
    log_sum, _ = bank_infonce(anchors, banks, index, spec, temperature, False, plan, draw_backend, part)
    return with_positives(log_sum, anchors, banks, index, temperature, part)


def _score(
    op, anchors, banks, index, spec, plan, part, needs_grad, temperature=1.0, log_z=None, bias=0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """The op's value [S, B], gradient and sums fp64 [S, B, 2].

    More directions than one native call supports take several calls.
    """
    most, results = native_module.module().MAX_DIRECTIONS, []
    for lo in range(0, len(banks), most):
        some = slice(lo, lo + most)
        known = None if log_z is None else log_z[some]
        call = Call(op, anchors[some], banks[some], index, spec, needs_grad, temperature, known, part, bias)
        results.append((call.run(plan), call.grad, call.partial))
    if len(results) == 1:
        return results[0]
    acc = accumulation_dtype(anchors, *banks)
    value, grad, sums = zip(*results, strict=True)
    return torch.cat([t.to(acc) for t in value]), torch.cat([t.to(acc) for t in grad]), torch.cat(sums)


class Call:
    """One call of a bank op: its tensors, kept alive until it has run."""

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
        bias: float = 0.0,
    ):
        part = part or whole(banks)
        self.op, self.spec, self.temperature, self.bias = op, spec, temperature, bias
        self.dtype = accumulation_dtype(anchors, *banks)
        self.anchors = anchors.to(self.dtype).contiguous()  # [S, B, D]
        self.banks = [bank.contiguous() for bank in banks]
        self.index = index.contiguous()
        self.part, self.num_data = part, part.num_data
        most = native_module.module().MAX_POOL
        if self.num_data > most:
            raise NotImplementedError(f"bank: the native CPU code takes up to {most} rows, got {self.num_data}")
        directions, batch = anchors.shape[:2]
        self.log_z = None if log_z is None else log_z.double().contiguous()  # [S]
        self.partial = torch.empty(directions, batch, 2, dtype=torch.float64)
        self.value = torch.empty(directions, batch, dtype=self.dtype)
        self.grad = torch.empty_like(self.anchors) if needs_grad else self.anchors.new_empty(0)

    def run(self, plan: str) -> Tensor:
        """The op's result [S, B]; the gradient is in `self.grad`."""
        record, _alive = self.record(plan)
        unfit = native_module.module().cpu_bank_score(record)
        if unfit >= 0:
            refuse(self.anchors, self.index, unfit, self.num_data, self.spec)
        return self.value

    def record(self, plan: str) -> tuple[Any, Tensor | None]:
        """(the call as the native `BankScore`, a tensor to keep until it has run)."""
        native = native_module.module()
        negatives, alive = negative_fields(self.index, self.spec, self.part, self.banks[0].shape[0])
        record = native.BankScore(
            **negatives,
            op=native.BANK_OPS[self.op],
            plan=native.BANK_PLANS[plan],
            wide=self.dtype == torch.float64,
            directions=len(self.banks),
            dim=self.banks[0].shape[1],
            anchors=self.anchors.data_ptr(),
            **bank_fields(self.banks),
            temperature=self.temperature,
            charged=self.spec.k,
            nce_eps=EPS,
            bias=self.bias,
            log_z=0 if self.log_z is None else self.log_z.data_ptr(),
            partial=self.partial.data_ptr(),
            value=self.value.data_ptr(),
            grad=self.grad.data_ptr(),  # 0 if the gradient is not needed: the tensor is empty
            **native_module.on_cpu(),
        )
        return record, alive


def refuse(anchors: Tensor, index: Tensor, anchor: int, num_data: int, spec: DrawSpec) -> NoReturn:
    """Raise the error for `anchor`, the first that the native code could not score."""
    checks.rows_in_range("index", index, num_data)
    if spec.source == "given":
        checks.rows_in_range("negatives", spec.table("indices"), num_data)
    checks.finite_rows("anchor", anchors, Code.ANCHOR)
    raise nothing_to_draw(index, anchor, num_data, spec)


def gather_bytes(
    batch: int,
    num_data: int,
    k: int,
    dim: int,
    *,
    directions: int = 2,
    dtype: torch.dtype = torch.float32,
    needs_grad: bool = True,
    threads: int = 1,
) -> int:
    """The bytes that one gather call allocates beside its results, for banks of `dtype`: at most 16 MB + 8 * B * D."""
    native = native_module.module()
    code = native_module.dtype_code(dtype)
    sizes = native.BankScore(
        **dict.fromkeys(("index", "anchor_offset", "first_row", "anchors", "partial"), 0),
        index_bytes=8,
        source=native.SOURCES["none"],
        replacement=native.REPLACEMENTS["no"],
        negatives=native.NEGATIVES["drawn"],
        num_anchors=batch,
        num_draws=k,
        num_data=num_data,
        num_rows=num_data,
        op=native.BANK_OPS["nce"],
        plan=native.BANK_PLANS["gather"],
        wide=dtype == torch.float64,
        directions=directions,
        dim=dim,
        **{f"bank_{s}": 0 for s in range(directions)},
        **{f"bank_dtype_{s}": code for s in range(directions)},
        **{f"bank_stride_{s}": dim for s in range(directions)},
        temperature=1.0,
        charged=k,
        nce_eps=EPS,
        grad=64 if needs_grad else 0,  # an address that is not null; nothing is read or written
        threads=threads,
    )
    return native.cpu_bank_score_bytes(sizes)
