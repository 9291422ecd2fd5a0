"""Doubly stochastic projection of many small matrices: the registered op, its backends, and its `autograd.Function`.

The matrices are exp(logits / eps) after `iters` normalisations of the rows and then of the columns. The gradient is
that of the iterations. With g = dL / d log P, a normalisation of rows subtracts from g its row sums times the matrix
that the normalisation returned; one of columns does so with column sums (csrc/cpu/sinkhorn_project.inl).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import dispatch, native_module, status
from ..differentiable_once import differentiable_once
from ..eager import calls_directly
from ..library import register
from ..tensors import accumulation_dtype

MOST = 16  # rows and columns of a matrix
_NOT_TWICE = "the gradient of sinkhorn_project cannot be differentiated again"


def _reference(logits: Tensor, grad: Tensor | None, eps: float, iters: int) -> Tensor:
    """P [G, n, n] in the log domain, or with `grad` (that of P) the gradient of the logits."""
    log, steps = (logits - logits.amax(-1, keepdim=True)) / eps, []
    for _ in range(iters):
        for dim in (-1, -2):
            log = log - log.logsumexp(dim, keepdim=True)
            if grad is not None:
                steps.append((log.exp(), dim))
    if grad is None:
        return log.exp()
    g = grad * steps[-1][0]
    for made, dim in reversed(steps):
        g = g - made * g.sum(dim, keepdim=True)
    return g / eps


def _native(logits: Tensor, grad: Tensor | None, eps: float, iters: int) -> Tensor:
    """`_reference` in native code. `_reference` itself solves the problems whose sums leave the range of the dtype."""
    out, solved = torch.empty_like(logits), torch.empty(len(logits), dtype=torch.int32, device="cpu")
    native = native_module.module()
    native.cpu_ot_project(
        native.OtProject(
            dtype=native_module.dtype_code(logits.dtype),
            problems=len(logits),
            n=logits.shape[-1],
            iters=iters,
            eps=eps,
            logits=logits.data_ptr(),
            grad=0 if grad is None else grad.data_ptr(),
            out=out.data_ptr(),
            out_solved=solved.data_ptr(),
            **native_module.on_cpu(),
        )
    )
    if not solved.all():
        left = (solved == 0).nonzero().squeeze(1)
        out[left] = _reference(logits[left], None if grad is None else grad[left], eps, iters)
    return out


def _project(logits: Tensor, grad: Tensor | None, eps: float, iters: int, backend: str) -> Tensor:
    """P of logits [G, n, n], or with `grad` the gradient of the logits; both in the accumulation dtype."""
    dtype = accumulation_dtype(logits.dtype)
    wide = logits.to(dtype).contiguous()
    factor = None if grad is None else grad.to(dtype).contiguous()
    kind = logits.device.type
    run = _native if dispatch.resolve("ot_project", device=kind, backend=backend).backend == "native" else _reference
    out = run(wide, factor, eps, iters)
    if grad is None and kind == "cpu" and not out.isfinite().all():
        _refuse(logits, eps)
    return out


def _refuse(logits: Tensor, eps: float) -> None:
    def describe(at: tuple[int, ...]) -> Exception:
        return ValueError(f"logits{list(at)}: expected a finite number, got {logits[at].item()}")

    status.guard(~logits.isfinite(), status.Code.OT_INPUT, describe)
    raise ValueError(f"logits: values up to {logits.abs().max():g} overflow the range in logits / eps (eps = {eps:g})")


def _fake(logits: Tensor, *_) -> Tensor:
    return logits.new_empty(logits.shape, dtype=accumulation_dtype(logits.dtype))


project_op = register(
    "ot_project(Tensor logits, Tensor? grad, Scalar eps, SymInt iters, str backend) -> Tensor", _project, _fake
)


class _Projection(torch.autograd.Function):
    """`project` as one node of the graph. The second output is empty and serves `differentiable_once`."""

    @staticmethod
    def forward(ctx, logits, eps: float, iters: int, backend: str):
        run = _project if calls_directly(logits) else project_op
        out = run(logits, None, eps, iters, backend).to(logits.dtype)
        handle = out.new_empty(0)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, handle)
        ctx.options = (eps, iters, backend)
        return out, handle

    @staticmethod
    def backward(ctx, grad, _):
        if grad is None:
            return None, None, None, None
        logits, handle = ctx.saved_tensors
        run = _project if calls_directly(logits, grad) else project_op
        with torch.no_grad():
            back = run(logits, grad, *ctx.options).to(logits.dtype)
        return *differentiable_once([back], _NOT_TWICE, grad, handle), None, None, None


def project(logits: Tensor, eps: float, iters: int, backend: str) -> Tensor:
    """Doubly stochastic matrices [G, n, n] of checked logits, in their dtype, differentiable once."""
    return _Projection.apply(logits, eps, iters, backend)[0]
