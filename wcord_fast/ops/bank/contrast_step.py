"""A training step of CRD's loss in compiled code (on the CPU csrc/cpu/contrast_step.cpp), under one autograd Function.

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
from ..tensors import count_write
from .native_fields import bank_fields, negative_fields
from .part import whole
from .reference import EPS, MIN_NORM

_NOT_TWICE = "the gradient of a bank score cannot be differentiated again: only the first one is computed"


class Unfit(Exception):
    """A value is not acceptable, and nothing has been written. The separate ops raise the error."""


@dataclass
class Step:
    """One batch on its way through the native code.

    Attributes:
        banks: (teacher's, student's) rows [N, D], contiguous, which direction 0 and 1 score.
        positive: [B] rows of the positives; contiguous.
        index: [B] the images' own rows, contiguous, which are updated.
        spec: the negatives.
        log_z: log Z of both directions, set.
        temperature, least_length, momentum: see `ContrastStep` in csrc/common.
        plan: "gather" or "dense".
        factor: weight of the loss.
        spectral: the spectral norms of the student's and the teacher's map; None for a map without one.
        local: a function of the embeddings [B, D] of student and teacher and whether a gradient is needed; it returns
            another term's value and its gradient at the student's. Or None.
        local_factor: weight of that term.
        records: whether the caller records gradients.
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
    local: Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor | None]] | None = None
    local_factor: float = 0.0
    records: bool = True
    terms: Tensor | None = None  # [2], once scored: -NCE and the local term, unweighted
    _record: Any = None
    _alive: list[Any] = field(default_factory=list)  # tensors whose addresses the record has

    def score(self, features, maps, needs_grad: bool) -> tuple[Tensor, Tensor, HostNorms | None]:
        """The weighted loss, a scalar; its gradient at the linear maps' outputs, [1, 2, B, D]; their spectral norms.

        Where there are norms the gradient is [2, 2, B, D], the second one divided by them.

        Args:
            features: of student and teacher, [B, ...].
            maps: weight [D, d] and bias [D] of both.
        Raises:
            Unfit: an index, an explicit row or an embedding is not acceptable.
        """
        embedded = [
            torch.addmm(b, as_rows(f, w.dtype), w.t(), alpha=1.0 if norm is None else 1.0 / norm.sigma)
            for f, (w, b), norm in zip(features, maps, self.spectral, strict=True)
        ]
        norms = None if self.spectral == (None, None) else HostNorms(self.spectral)
        native = native_module.module()
        (batch, dim), dtype = embedded[0].shape, embedded[0].dtype
        anchors = torch.empty(2, batch, dim, dtype=dtype)
        kept = torch.empty(1 if norms is None else 2, 2, batch, dim, dtype=dtype)
        grad = kept[0]
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
        total = self.factor * ends[0]
        self._record, self._alive = record, [anchors, sums, ends, value, rows]
        other = 0.0
        if self.local is not None:
            result, local_grad = self.local(anchors[0], anchors[1], needs_grad)
            other = float(result)
            total += self.local_factor * other
            if local_grad is not None:
                local_grad = local_grad.mul_(self.local_factor)
                self._alive.append(local_grad)
                record.local_grad = local_grad.data_ptr()
        self.terms = torch.tensor((-ends[0], other), dtype=torch.float64)
        if needs_grad:
            native.cpu_contrast_gradient(record)
            if norms is not None:
                norms.divide(grad, kept[1])
        return torch.scalar_tensor(total, dtype=dtype), kept, norms

    def finish(self, state: Tensor) -> bool:
        """Update both banks and advance t of `state` = (seed, t). False: a row is bad, and nothing is written."""
        self._record.step = state[1:].data_ptr()
        if native_module.module().cpu_contrast_finish(self._record) >= 0:
            return False
        for bank in self.banks:
            count_write(bank)
        return True


class HostNorms:
    """The spectral norms of both weights, constants for the gradient. A weight without one has 1."""

    def __init__(self, spectral: tuple[Spectral | None, Spectral | None]):
        self._spectral = spectral

    def divide(self, grad: Tensor, out: Tensor) -> None:
        """out [2, B, D] = grad / sigma."""
        for side, norm in enumerate(self._spectral):
            torch.div(grad[side], 1.0 if norm is None else norm.sigma, out=out[side])

    def gradients_(self, grads: list[Tensor | None], weights: list[Tensor | None]) -> None:
        """Turn gradients at W / sigma, divided by sigma, into gradients at W, in place; None stays None."""
        for grad, weight, norm in zip(grads, weights, self._spectral, strict=True):
            if grad is not None and weight is not None and norm is not None:
                norm.gradient_(grad, weight)


class ContrastStep(torch.autograd.Function):
    """The weighted loss of a step, a scalar, of features [B, ...] and weights [D, d] and biases [D] of both maps.

    `step` is a `Step`, or the `DeviceStep` of contrast_step_cuda.py. The second output is empty and is for
    `differentiable_once`: its graph leads to every input.
    """

    @staticmethod
    def forward(ctx, f_s, f_t, w_s, b_s, w_t, b_t, step):
        ctx.set_materialize_grads(False)
        wanted = ctx.needs_input_grad
        loss, grad, norms = step.score((f_s, f_t), ((w_s, b_s), (w_t, b_t)), step.records and any(wanted))
        handle = loss.new_empty(0)
        kept = []  # the saved tensors of a linear map, and the weight for the gradient of its spectral norm
        for side, (f, weight) in enumerate(((f_s, w_s), (f_t, w_t))):
            kept.append(f if wanted[2 + 2 * side] else None)
            kept.append(weight if wanted[side] or (norms is not None and wanted[2 + 2 * side]) else None)
        ctx.save_for_backward(handle, grad, *kept)
        ctx.shapes, ctx.dtypes = (f_s.shape, f_t.shape), (f_s.dtype, f_t.dtype)
        ctx.norms = norms
        return loss, handle

    @staticmethod
    def backward(ctx, grad_output, _):
        if grad_output is None:
            return (None,) * 7
        device = grad_output.device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return ContrastStep._gradients(ctx, grad_output)
        return ContrastStep._gradients(ctx, grad_output)

    @staticmethod
    def _gradients(ctx, grad_output) -> tuple[Tensor | None, ...]:
        handle, kept, f_s, w_s, f_t, w_t = ctx.saved_tensors
        scaled = kept * grad_output
        own, divided = scaled[0], scaled[-1]
        wanted = ctx.needs_input_grad
        grads: list[Tensor | None] = [None] * 7
        for side, (f, weight) in enumerate(((f_s, w_s), (f_t, w_t))):
            if wanted[side]:
                grads[side] = torch.mm(divided[side], weight).to(ctx.dtypes[side]).view(ctx.shapes[side])
            if wanted[2 + 2 * side]:
                grads[2 + 2 * side] = torch.mm(divided[side].t(), as_rows(f, own.dtype))
        if ctx.norms is not None:
            ctx.norms.gradients_(grads[2:6:2], [w_s, w_t])
        if wanted[3] or wanted[5]:
            biases = own.sum(1)  # [2, D]
            for side in (0, 1):
                grads[3 + 2 * side] = biases[side] if wanted[3 + 2 * side] else None
        return tuple(differentiable_once(grads, _NOT_TWICE, grad_output, handle))


def as_rows(features: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, d] in `dtype`."""
    rows = features if features.dim() == 2 else features.flatten(1)
    return rows if rows.dtype is dtype else rows.to(dtype)
