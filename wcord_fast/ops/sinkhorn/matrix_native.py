"""The solver for given costs in compiled code for CPU tensors: csrc/cpu/sinkhorn_shared.cpp.

Two or more problems that share a matrix are solved together. A problem whose scalings leave the range of fp32 is
solved in fp64, and by the log-domain loop of the reference if they leave that range too.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .. import native_module
from ..tensors import accumulation_dtype, contiguous
from . import matrix_reference
from .autograd import refuse_overflow
from .matrix_reference import MatrixResult, unwritten
from .native_fields import result_fields, solver_fields
from .reference import SUM_TOLERANCE, SolveOptions


def solve(costs: Tensor, a: Tensor, b: Tensor, options: SolveOptions) -> MatrixResult:
    """`matrix_reference.solve` in native code."""
    costs, a, b = contiguous(costs, accumulation_dtype(costs.dtype)), a.contiguous(), b.contiguous()
    solved = unwritten(costs, a.shape[0], options)
    done = torch.empty(a.shape[0], dtype=torch.int32, device="cpu")
    left = _run(
        costs,
        a,
        b,
        options,
        out_solved=done.data_ptr(),
        **result_fields(solved),
    )
    if left < 0:
        matrix_reference.flag(costs, a, b, options.relaxed)
        raise ValueError(f"a, b: expected masses with sum 1 (to {SUM_TOLERANCE:g})")
    if left > 0:
        rows = torch.nonzero(done == 0).flatten()
        rest = matrix_reference.solve(costs[rows] if costs.shape[0] > 1 else costs, a[rows], b[rows], options)
        for whole, part in zip(solved, rest, strict=True):
            if whole.numel():
                whole[rows] = part
    return solved


def value(costs: Tensor, a: Tensor, b: Tensor, options: SolveOptions) -> tuple[Tensor, Tensor]:
    """Values [G] of a solve without `tol`, and one tensor with what the gradients need: see `parts`.

    costs [n, m] or [G, n, m], a [G or 1, n] and b [G or 1, m].
    """
    dtype = a.dtype
    costs = contiguous(costs, dtype)
    problems = max(a.shape[0], b.shape[0], costs.shape[0] if costs.dim() == 3 else 1)
    a, b = (contiguous(t if t.shape[0] == problems else t.expand(problems, -1), dtype) for t in (a, b))
    sizes = _sizes(problems, *costs.shape[-2:], options)
    values, kept = a.new_empty(problems), a.new_empty(sum(sizes))
    places, at = [], kept.data_ptr()
    for size in sizes:
        places.append(at if size else 0)
        at += size * dtype.itemsize
    alpha, beta, scale, scaled, grad_a, grad_b = places
    left = _run(
        costs,
        a,
        b,
        options,
        out_value=values.data_ptr(),
        out_alpha=alpha,
        out_beta=beta,
        out_scale=scale,
        out_scalings=scaled,
        grad_a=grad_a,
        grad_b=grad_b,
    )
    if left:
        solved = solve(costs if costs.dim() == 3 else costs.unsqueeze(0), a, b, options)
        values = solved.value
        refuse_overflow(values, {"C": costs}, options)
        kept = torch.cat([t.flatten() for t in (*solved[1:4], values.new_zeros(1), solved.grad_a, solved.grad_b)])
    return values, kept


def parts(kept: Tensor, problems: int, costs: Tensor, options: SolveOptions) -> tuple[Tensor, ...]:
    """alpha [G, n], beta [G, m], scale [G], grad_a [G, n] and grad_b [G, m] in the second result of `value`.

    A gradient that is not needed is empty.
    """
    alpha, beta, scale, scaled, *grads = kept.split(_sizes(problems, *costs.shape[-2:], options))
    alpha, beta, *grads = (t.view(problems, -1) for t in (alpha, beta, *grads))
    if scaled.view(torch.int32)[0]:  # the native code kept scalings of a shared matrix
        alpha, beta = alpha.log() + scale.unsqueeze(-1) * costs.to(kept.dtype).amin(-1), beta.log()
    return alpha, beta, scale, *grads


@functools.lru_cache(maxsize=64)
def _sizes(problems: int, n: int, m: int, options: SolveOptions) -> list[int]:
    dual = options.value == "dual"
    rows, columns = problems * n, problems * m
    grads = rows if options.need_a and dual else 0, columns if options.need_b and dual else 0
    return [rows, columns, problems, 1, *grads]  # 1: whether alpha and beta are scalings, an int32


def _run(costs: Tensor, a: Tensor, b: Tensor, options: SolveOptions, **results: int) -> int:
    """The native call on contiguous tensors. `results` are addresses, 0 for a result that is not needed."""
    native = native_module.module()
    n, m = costs.shape[-2:]
    record = native.OtMatrix(
        dtype=native_module.dtype_code(costs.dtype),
        problems=a.shape[0],
        n=n,
        m=m,
        own=costs.dim() == 3 and costs.shape[0] > 1,
        costs=costs.data_ptr(),
        a=a.data_ptr(),
        b=b.data_ptr(),
        threads=native_module.threads(),
        **_option_fields(options),
        **results,
    )
    return native.cpu_ot_matrix(record)


@functools.lru_cache(maxsize=64)
def _option_fields(options: SolveOptions) -> dict[str, int | float]:
    """The options as fields of the record. The caller only reads the result, which is remembered."""
    return {**solver_fields(options), "reach_a": options.reach_a or 0.0, "reach_b": options.reach_b or 0.0}


def gradient(costs: Tensor, alpha: Tensor, beta: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
    """`matrix_reference.gradient` in native code."""
    alpha, beta, scale = (t.contiguous() for t in (alpha, beta, scale))
    return _gradient(costs, alpha.shape[0], alpha.data_ptr(), beta.data_ptr(), scale.data_ptr(), weight)


def gradient_of_kept(costs: Tensor, kept: Tensor, weight: Tensor) -> Tensor:
    """The gradient in costs [n, m] or [G, n, m], in the shape and dtype of these, of `value`'s results."""
    problems, (n, m) = weight.shape[0], costs.shape[-2:]
    alpha, size = kept.data_ptr(), kept.dtype.itemsize
    beta = alpha + problems * n * size
    scale = beta + problems * m * size
    grad = _gradient(costs, problems, alpha, beta, scale, weight, scale + problems * size)
    return grad if grad.dtype is costs.dtype else grad.to(costs.dtype)


def _gradient(
    costs: Tensor, problems: int, alpha: int, beta: int, scale: int, weight: Tensor, scaled: int = 0
) -> Tensor:
    """`gradient` from the addresses of the potentials, or of scalings where the int32 at `scaled` says so, in the dtype
    of `weight`."""
    costs, weight = contiguous(costs, weight.dtype), weight.contiguous()
    out = costs.new_empty(costs.shape)
    n, m = costs.shape[-2:]
    native = native_module.module()
    record = native.OtMatrixGradient(
        dtype=native_module.dtype_code(costs.dtype),
        shared=problems == 1 or costs.dim() == 2 or costs.shape[0] == 1,
        problems=problems,
        n=n,
        m=m,
        costs=costs.data_ptr(),
        alpha=alpha,
        beta=beta,
        scale=scale,
        weight=weight.data_ptr(),
        scalings=scaled,
        out=out.data_ptr(),
        threads=native_module.threads(),
    )
    native.cpu_ot_matrix_gradient(record)
    return out
