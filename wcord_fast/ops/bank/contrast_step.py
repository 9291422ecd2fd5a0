"""A training step of CRD's loss in compiled code on the CPU (csrc/cpu/contrast_step.cpp), under one autograd Function.

From features to the scalar loss: two linear maps, then one native call that normalises, draws, scores and gives the
gradient. Value and gradient are known when forward ends, so backward only multiplies. `finish` writes the banks.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import native_module
from ..differentiable_once import differentiable_once
from ..sampling.spec import DrawSpec
from ..spectral import Spectral
from .native_fields import bank_fields, negative_fields
from .part import whole
from .reference import EPS, MIN_NORM

_NOT_TWICE = "the gradient of a bank score cannot be differentiated again: only the first one is computed"


class Unfit(Exception):
    """A value stands against this call; nothing has been written. Whoever takes the long way is told which."""


@dataclass
class Step:
    """One batch on its way through the native code.

    Attributes:
        banks: (teacher's, student's) rows [N, D], contiguous: those that direction 0 and 1 score.
        positive: [B] rows of the positives; contiguous.
        index: [B] the images' own rows, contiguous: those that are updated.
        spec: the negatives.
        log_z: log Z of both directions, set.
        temperature, least_length, momentum: see `ContrastStep` in csrc/common.
        plan: "gather" or "dense".
        factor: weight of the loss.
        spectral: of the student's and the teacher's map, or None where a map has no spectral norm.
        local: from the embeddings [B, D] of student and teacher, and whether a gradient is wanted, to another weighted
            term's value and its gradient at the student's; or None.
        records: whether gradients are recorded where this runs.
    """

    banks: tuple[Tensor, Tensor]
    positive: Tensor
    index: Tensor
    spec: DrawSpec
    log_z: list[float]
    temperature: float
    least_length: float
    momentum: float
    plan: str
    factor: float = 1.0
    spectral: tuple[Spectral | None, Spectral | None] = (None, None)
    local: Callable[[Tensor, Tensor, bool], tuple[float, Tensor | None]] | None = None
    records: bool = True
    nce: float = 0.0  # unweighted, once scored
    _record: Any = None
    _alive: list[Any] = field(default_factory=list)  # what the record has addresses of

    def score(self, embedded: tuple[Tensor, Tensor], needs_grad: bool) -> tuple[float, Tensor]:
        """(the weighted loss, its gradient [2, B, D] at `embedded`, which are what the linear maps have returned).

        Raises:
            Unfit: an index, an explicit row or an embedding is not acceptable.
        """
        native = native_module.module()
        (batch, dim), dtype = embedded[0].shape, embedded[0].dtype
        anchors, grad = torch.empty(2, 2, batch, dim, dtype=dtype).unbind()
        sums = array("d", bytes(48 * batch))  # partial [2, B, 2], length [2, B]
        ends = array("d", (0.0, *self.log_z))  # loss, log Z [2]
        value = torch.empty(2, batch, dtype=dtype)
        (at, _), (end, _) = sums.buffer_info(), ends.buffer_info()
        negatives, rows = negative_fields(self.positive, self.spec, whole([*self.banks]), self.banks[0].shape[0])
        record = native.ContrastStep(
            **negatives,
            op=native.BANK_OPS["nce"],
            plan=native.BANK_PLANS[self.plan],
            wide=dtype == torch.float64,
            directions=2,
            dim=dim,
            anchors=anchors.data_ptr(),
            **bank_fields([*self.banks]),
            temperature=self.temperature,
            charged=self.spec.k,
            nce_eps=EPS,
            log_z=end + 8,
            partial=at,
            value=value.data_ptr(),
            grad=grad.data_ptr() if needs_grad else 0,
            **native_module.on_cpu(),
            embedded_0=embedded[0].data_ptr(),
            embedded_1=embedded[1].data_ptr(),
            least_length=self.least_length,
            length=at + 32 * batch,
            loss=end,
            factor=self.factor,
            update_index=self.index.data_ptr(),
            update_index_bytes=self.index.element_size(),
            momentum=self.momentum,
            min_norm=MIN_NORM,
        )
        if native.cpu_contrast_score(record) >= 0:
            raise Unfit
        self.nce = ends[0]
        total = self.factor * self.nce
        self._record, self._alive = record, [anchors, sums, ends, value, rows]
        if self.local is not None:
            other, local_grad = self.local(anchors[0], anchors[1], needs_grad)
            total += other
            if local_grad is not None:
                self._alive.append(local_grad)
                record.local_grad = local_grad.data_ptr()
        if needs_grad:
            native.cpu_contrast_gradient(record)
        return total, grad

    def finish(self, state: Tensor) -> bool:
        """Update both banks and advance t of `state` = (seed, t); False: a row of a bank stands against it, nothing is
        written."""
        self._record.step = state[1:].data_ptr()
        if native_module.module().cpu_contrast_finish(self._record) >= 0:
            return False
        for bank in self.banks:
            if not bank.is_inference():
                torch.autograd.graph.increment_version(bank)
        return True


class ContrastStep(torch.autograd.Function):
    """The weighted loss of a `Step`, a scalar, of features [B, ...] and weights [D, d] and biases [D] of both maps.

    The second output is empty and is for `differentiable_once`: its graph leads to every input.
    """

    @staticmethod
    def forward(ctx, f_s, f_t, w_s, b_s, w_t, b_t, step: Step):
        ctx.set_materialize_grads(False)
        wanted = ctx.needs_input_grad
        embedded = _linear(f_s, w_s, b_s, step.spectral[0]), _linear(f_t, w_t, b_t, step.spectral[1])
        total, grad = step.score(embedded, step.records and any(wanted))
        loss = torch.scalar_tensor(total, dtype=grad.dtype)
        handle = loss.new_empty(0)
        kept = []  # what a linear map keeps, and the weight for the gradient of its spectral norm
        for side, (f, weight, spectral) in enumerate(zip((f_s, f_t), (w_s, w_t), step.spectral, strict=True)):
            kept.append(f if wanted[2 + 2 * side] else None)
            kept.append(weight if wanted[side] or (spectral is not None and wanted[2 + 2 * side]) else None)
        ctx.save_for_backward(handle, grad, *kept)
        ctx.shapes, ctx.dtypes = (f_s.shape, f_t.shape), (f_s.dtype, f_t.dtype)
        ctx.spectral = step.spectral
        return loss, handle

    @staticmethod
    def backward(ctx, grad_output, _):
        if grad_output is None:
            return (None,) * 7
        if torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return ContrastStep._gradients(ctx, grad_output)
        return ContrastStep._gradients(ctx, grad_output)

    @staticmethod
    def _gradients(ctx, grad_output) -> tuple[Tensor | None, ...]:
        handle, grad, f_s, w_s, f_t, w_t = ctx.saved_tensors
        scaled = grad * grad_output
        wanted = ctx.needs_input_grad
        grads: list[Tensor | None] = [None] * 7
        for side, (f, weight, spectral) in enumerate(zip((f_s, f_t), (w_s, w_t), ctx.spectral, strict=True)):
            own = scaled[side]
            divided = own if spectral is None else own / spectral.sigma
            if wanted[side]:
                grads[side] = torch.mm(divided, weight).to(ctx.dtypes[side]).view(ctx.shapes[side])
            if wanted[2 + 2 * side]:
                product = torch.mm(divided.t(), _rows(f, own.dtype))
                grads[2 + 2 * side] = product if spectral is None else spectral.gradient_(product, weight)
            if wanted[3 + 2 * side]:
                grads[3 + 2 * side] = own.sum(0)
        return tuple(differentiable_once(grads, _NOT_TWICE, grad_output, handle))


def _linear(features: Tensor, weight: Tensor, bias: Tensor, spectral: Spectral | None) -> Tensor:
    """x W^T + b, or x (W / sigma)^T + b: [B, D]."""
    alpha = 1.0 if spectral is None else 1.0 / spectral.sigma
    return torch.addmm(bias, _rows(features, weight.dtype), weight.t(), alpha=alpha)


def _rows(features: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, d] in `dtype`."""
    rows = features if features.dim() == 2 else features.flatten(1)
    return rows if rows.dtype is dtype else rows.to(dtype)
