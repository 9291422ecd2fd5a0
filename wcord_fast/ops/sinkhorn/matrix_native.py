"""The solver for given costs in compiled code for CPU tensors: csrc/cpu/sinkhorn_shared.cpp.

Problems that share a matrix are solved together. A problem whose scalings leave the range of fp32 is solved in fp64,
and by the log-domain loop of the reference if they leave that range too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import native_module
from ..tensors import accumulation_dtype
from . import matrix_reference
from .matrix_reference import MatrixResult, unwritten
from .reference import CHECK_EVERY, SUM_TOLERANCE, SolveOptions


def solve(costs: Tensor, a: Tensor, b: Tensor, options: SolveOptions) -> MatrixResult:
    """As `matrix_reference.solve`."""
    problems, (n, m) = a.shape[0], costs.shape[-2:]
    wide = costs.to(accumulation_dtype(costs.dtype)).contiguous()
    a, b = a.contiguous(), b.contiguous()
    solved = unwritten(costs, problems, options)
    done = torch.empty(problems, dtype=torch.int32, device="cpu")
    native = native_module.module()
    record = native.OtMatrix(
        dtype=native_module.dtype_code(wide.dtype),
        problems=problems,
        n=n,
        m=m,
        own=costs.shape[0] > 1,
        costs=wide.data_ptr(),
        a=a.data_ptr(),
        b=b.data_ptr(),
        solver=native.OT_SOLVERS[options.solver],
        value=native.OT_VALUES[options.value],
        eps=options.eps,
        iters=options.iters,
        tol=-1.0 if options.tol is None else options.tol,
        check_every=CHECK_EVERY,
        sum_tolerance=SUM_TOLERANCE,
        reach_a=options.reach_a or 0.0,
        reach_b=options.reach_b or 0.0,
        out_value=solved.value.data_ptr(),
        out_alpha=solved.alpha.data_ptr(),
        out_beta=solved.beta.data_ptr(),
        out_scale=solved.scale.data_ptr(),
        out_error=solved.marginal_error.data_ptr() if options.need_error else 0,
        out_iterations=solved.iterations.data_ptr(),
        out_solved=done.data_ptr(),
        grad_a=solved.grad_a.data_ptr(),
        grad_b=solved.grad_b.data_ptr(),
        **native_module.on_cpu(),
    )
    if not native.cpu_ot_matrix(record):
        matrix_reference.flag(wide, a, b, options.relaxed)
        raise ValueError(f"a, b: expected masses with sum 1 (to {SUM_TOLERANCE:g})")
    if 0 in (left := done.tolist()):
        rows = torch.tensor([g for g, solved_here in enumerate(left) if not solved_here], device="cpu")
        rest = matrix_reference.solve(wide[rows] if costs.shape[0] > 1 else wide, a[rows], b[rows], options)
        for whole, part in zip(solved, rest, strict=True):
            if whole.numel():
                whole[rows] = part
    return solved


def gradient(costs: Tensor, alpha: Tensor, beta: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
    """As `matrix_reference.gradient`."""
    wide = costs.to(alpha.dtype).contiguous()
    alpha, beta, scale, weight = (t.contiguous() for t in (alpha, beta, scale, weight))
    out = torch.empty_like(wide)
    native = native_module.module()
    record = native.OtMatrixGradient(
        dtype=native_module.dtype_code(wide.dtype),
        shared=costs.shape[0] < alpha.shape[0] or alpha.shape[0] == 1,
        problems=alpha.shape[0],
        n=costs.shape[1],
        m=costs.shape[2],
        costs=wide.data_ptr(),
        alpha=alpha.data_ptr(),
        beta=beta.data_ptr(),
        scale=scale.data_ptr(),
        weight=weight.data_ptr(),
        out=out.data_ptr(),
        **native_module.on_cpu(),
    )
    native.cpu_ot_matrix_gradient(record)
    return out
