"""The solver for given costs in compiled code for CUDA tensors: csrc/cuda/sinkhorn_given.cu and sinkhorn_plan.cu.

A solve is one launch in the regimes of native_cuda.py, whose kernels read the costs where they make them of features.
The gradient in the costs is a second launch. Nothing here waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import native_module, status
from ..tensors import accumulation_dtype, contiguous
from . import matrix_reference, native_cuda
from .backends import NO_REACH
from .matrix_reference import MatrixResult
from .native_fields import option_fields, result_fields
from .reference import SolveOptions

MOST_CELLS = 1 << 22  # G n m of a shared matrix: with more, products iterate all problems faster (matrix_triton.py)


def unavailable_reason(
    n: int, m: int, dtype: torch.dtype = torch.float32, device: int | None = None, relaxed: bool = False
) -> str | None:
    """The reason why a device (None: the current one) cannot solve n x m here, or None if it can."""
    if relaxed:
        return NO_REACH
    return native_cuda.unavailable_reason(n, m, 0, dtype, device, given=True)


def solve(costs: Tensor, a: Tensor, b: Tensor, options: SolveOptions) -> MatrixResult:
    """As `matrix_reference.solve`, for every dtype; no relaxed marginals.

    Raises:
        NotImplementedError: the problem fits neither regime, or a marginal is relaxed.
        RuntimeError: the launch failed.
    """
    dtype, (n, m) = accumulation_dtype(costs.dtype), costs.shape[-2:]
    device, _stream = native_module.stream_of(costs)
    reason = unavailable_reason(n, m, dtype, device, options.relaxed)
    if reason:
        raise NotImplementedError(f"backend='native': {reason}")
    costs, a, b = costs.contiguous(), contiguous(a, dtype), contiguous(b, dtype)
    solved = matrix_reference.unwritten(costs, a.shape[0], options._replace(need_error=True))
    sizes = native_cuda.Sizes(dtype, a.shape[0], n, m, 0, given=True)
    native_cuda.launch(
        costs,
        sizes,
        dtype=native_module.dtype_code(costs.dtype),
        problems=sizes.problems,
        n=n,
        m=m,
        dim=0,
        x=costs.data_ptr(),
        y=0,
        own=costs.shape[0] > 1,
        a=a.data_ptr(),
        b=b.data_ptr(),
        **option_fields(options),
        **result_fields(solved),
    )
    return solved if options.need_error else solved._replace(marginal_error=a.new_empty(0))


def gradient(costs: Tensor, alpha: Tensor, beta: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
    """As `matrix_reference.gradient`."""
    dtype, problems = alpha.dtype, alpha.shape[0]
    costs, *given = (contiguous(t, dtype) for t in (costs, alpha, beta, scale, weight))
    out = torch.empty_like(costs)
    native = native_module.module()
    record = native.OtMatrixGradient(
        dtype=native_module.dtype_code(dtype),
        shared=costs.shape[0] < problems,
        problems=problems,
        n=costs.shape[-2],
        m=costs.shape[-1],
        costs=costs.data_ptr(),
        **{name: t.data_ptr() for name, t in zip(("alpha", "beta", "scale", "weight"), given, strict=True)},
        out=out.data_ptr(),
        **native_module.on_device(costs),
    )
    native_module.check_launch("ot_matrix_gradient", native.cuda_ot_matrix_gradient(record))
    status.check_if_enabled(costs.device)
    return out
