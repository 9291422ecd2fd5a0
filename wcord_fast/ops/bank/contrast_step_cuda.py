"""A training step of CRD's loss on a CUDA device: the rows' work before and after the score in one launch each.

As contrast_step.py on the CPU, under the same autograd Function: a product for each linear map, the embeddings
(csrc/cuda/step_rows.cu), the score by any backend and plan, then the gradient through the norm, the loss, both bank
updates and the next step at once. Spectral norms are one launch, and their gradient another (csrc/cuda/spectral.cu).
Nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import native_module, status
from ..sampling.native import index_fields
from ..tensors import count_write
from .contrast_step import as_rows
from .reference import MIN_NORM

MOST_DIM = 4096  # width of an embedding, which must fit in one block's shared memory


class DeviceNorms:
    """The spectral norms of both weights, constants for the gradient.

    Args:
        weights: W [D, d] of both networks, contiguous.
        vectors: (u [D], v [d]) of both; with `moves` updated by one iteration of the power method.
        least: the lower bound of a norm.
    """

    def __init__(self, weights: tuple[Tensor, Tensor], vectors: list[tuple[Tensor, Tensor]], moves: bool, least: float):
        self.sigma = weights[0].new_empty(2)
        self._kept = [(torch.empty_like(u), torch.empty_like(v)) for u, v in vectors]
        moved: dict[str, int] = {}
        for s, (u, v) in enumerate(vectors):
            moved |= {f"u_{s}": u.data_ptr(), f"v_{s}": v.data_ptr()}
        record = self._record(weights, moves=moves, least=least, grad_0=0, **moved)
        native_module.check_launch("spectral_norm", native_module.module().cuda_spectral_iterate(record))
        if moves:
            for vector in (vector for pair in vectors for vector in pair):
                count_write(vector)

    def gradients_(self, grads: list[Tensor | None], weights: list[Tensor | None]) -> None:
        """See `HostNorms.gradients_`."""
        if all(grad is None for grad in grads):
            return
        rows = [None if weight is None else weight.detach().contiguous() for weight in weights]
        at = {f"grad_{s}": 0 if grad is None else grad.data_ptr() for s, grad in enumerate(grads)}
        record = self._record(rows, u_0=0, v_0=0, **at)
        native_module.check_launch("spectral_norm", native_module.module().cuda_spectral_gradient(record))

    def _record(self, weights: Sequence[Tensor | None], **more: Any):
        fields: dict[str, Any] = {}
        for s, (weight, (u, v)) in enumerate(zip(weights, self._kept, strict=True)):
            fields |= {f"weight_{s}": 0 if weight is None else weight.data_ptr(), f"in_dim_{s}": len(v)}
            fields |= {f"kept_u_{s}": u.data_ptr(), f"kept_v_{s}": v.data_ptr()}
        return native_module.module().SpectralPair(
            wide=self.sigma.dtype == torch.float64,
            out_dim=len(self._kept[0][0]),
            sigma=self.sigma.data_ptr(),
            **fields,
            **more,
            **native_module.on_device(self.sigma),
        )


@dataclass
class DeviceStep:
    """One batch on its way through the native code of a CUDA device.

    Attributes:
        score_anchors: a function of anchors [2, B, D] and whether their gradient is needed; it returns the NCE losses
            [2, B] and that gradient, and checks the values that it reads.
        index: [B] the images' own rows, contiguous.
        banks: (student's, teacher's) rows [N, D], contiguous, which are updated; None in eval mode.
        state: (seed, t) of the sampler, of which t grows by 1 with an update.
        least_length, momentum: see `StepRows` in csrc/common.
        factor: weight of the loss.
        norms: makes the spectral norms of both maps, or None where they have none.
        local: as in the CPU's step, with tensors.
        local_factor: weight of that term.
        ramp: [2] factors of both weights on the device, or None.
        records: whether the caller records gradients.
    """

    score_anchors: Callable[[Tensor, bool], tuple[Tensor, Tensor]]
    index: Tensor
    banks: tuple[Tensor, Tensor] | None
    state: Tensor
    least_length: float
    momentum: float
    factor: float = 1.0
    norms: Callable[[], DeviceNorms] | None = None
    local: Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor | None]] | None = None
    local_factor: float = 0.0
    ramp: Tensor | None = None
    records: bool = True
    terms: Tensor | None = None  # [2], once scored: -NCE and the local term, unweighted
    _alive: list[Any] = field(default_factory=list)  # tensors whose addresses the record has

    def score(self, features, maps, needs_grad: bool) -> tuple[Tensor, Tensor, DeviceNorms | None]:
        """See `Step.score`."""
        native = native_module.module()
        norms = None if self.norms is None else self.norms()
        products = [torch.mm(as_rows(f, w.dtype), w.t()) for f, (w, _) in zip(features, maps, strict=True)]
        biases = [bias.detach().contiguous() for _, bias in maps]
        (batch, dim), dtype = products[0].shape, products[0].dtype
        anchors = products[0].new_empty(2, batch, dim)
        length = products[0].new_empty(2, batch, dtype=torch.float64)
        record = native.StepRows(
            wide=dtype == torch.float64,
            batch=batch,
            dim=dim,
            product_0=products[0].data_ptr(),
            product_1=products[1].data_ptr(),
            bias_0=biases[0].data_ptr(),
            bias_1=biases[1].data_ptr(),
            sigma=0 if norms is None else norms.sigma.data_ptr(),
            least_length=self.least_length,
            anchors=anchors.data_ptr(),
            length=length.data_ptr(),
            bank_0=0,
            **native_module.on_cuda(anchors),
        )
        native_module.check_launch("contrast_step", native.cuda_step_embed(record))
        value, grad = self.score_anchors(anchors, needs_grad)
        kept = grad.new_empty((1 if norms is None else 2, 2, batch, dim) if needs_grad else (0,))
        if needs_grad:
            record.anchor_grad, record.grad = grad.data_ptr(), kept[0].data_ptr()
            record.divided = 0 if norms is None else kept[1].data_ptr()
        if self.local is not None:
            local, local_grad = self.local(anchors[0], anchors[1], needs_grad)
            self._alive += [local, local_grad]
            record.local_value, record.local_factor = local.data_ptr(), self.local_factor
            record.local_grad = 0 if local_grad is None else local_grad.data_ptr()
        losses = anchors.new_empty(3)
        record.value, record.loss, record.factor = value.data_ptr(), losses.data_ptr(), self.factor
        if self.ramp is not None:
            ramp = self.ramp.to(dtype)
            self._alive.append(ramp)
            record.ramp = ramp.data_ptr()
        if self.banks is not None:
            for name, number in {
                **index_fields(self.index, self.banks[0].shape[0]),
                "bank_0": self.banks[0].data_ptr(),
                "bank_1": self.banks[1].data_ptr(),
                "bank_dtype": native_module.dtype_code(self.banks[0].dtype),
                "momentum": self.momentum,
                "min_norm": MIN_NORM,
                "step": self.state[1:].data_ptr(),
            }.items():
                if name != "num_anchors":
                    setattr(record, name, number)
        native_module.check_launch("contrast_step", native.cuda_step_finish(record))
        status.check_if_enabled(anchors.device)
        if self.banks is not None:
            for bank in self.banks:
                count_write(bank)
        self.terms = losses[1:]
        return losses[0].detach(), kept, norms  # a view out of a Function could not be changed in place
