"""The solver for given costs on the GPU: matrix products for many problems with one matrix, and the streaming kernels.

The kernels (triton_kernels.py) read tiles of the cost. They solve every problem that the products have not solved,
because its scalings leave the range of fp32 or because there are too few problems for products. Which problems these
are is known to the device only, so nothing waits for it: kernels that have nothing to do return at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import matrix_product, matrix_reference, triton
from .matrix_native_cuda import MOST_CELLS
from .matrix_reference import MatrixResult
from .reference import SolveOptions, poison

PRODUCT_CELLS = MOST_CELLS  # G n m: with fewer, a sweep takes no longer than the launches of a product and its division
GRADIENT_BLOCK = 32


def unsupported(dtype: torch.dtype) -> str | None:
    """The reason why these kernels do not support costs of `dtype`, or None."""
    return triton.unsupported(dtype)


def solve(costs: Tensor, a: Tensor, b: Tensor, options: SolveOptions) -> MatrixResult:
    """As `matrix_reference.solve`, for fp16, bf16 and fp32.

    Products are IEEE fp32, or TF32 if `torch.set_float32_matmul_precision` allows it.
    """
    bad = matrix_reference.flag(costs, a, b, options.relaxed)
    wide, a, b = costs.float().contiguous(), a.contiguous(), b.contiguous()
    shared = costs.shape[0] < a.shape[0] or a.shape[0] == 1
    side = triton.Side(wide, wide.new_empty(0, dtype=torch.float16), *[wide.new_empty(0)] * 4)
    with triton.on_device(wide.device):
        run = triton.Solve(side, side, a, b, options, "shared" if shared else "given", 1)
        if shared and a.shape[0] * wide.numel() >= PRODUCT_CELLS:
            scaled = matrix_product.iterate(wide[0], a, b, options)
            run.alpha, run.beta, run.scale, run.iterations = (t.contiguous() for t in scaled[:4])
            run.start(~scaled.solved)
        run.iterate()
        solved = poison(bad, run.finish())
    if not options.need_error:
        solved = solved._replace(marginal_error=a.new_empty(0))
    return MatrixResult(*solved[:6], *solved[8:])


def gradient(costs: Tensor, alpha: Tensor, beta: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
    """As `matrix_reference.gradient`."""
    from . import triton_kernels

    wide = costs.float().contiguous()
    alpha, beta, scale, weight = (t.contiguous() for t in (alpha, beta, scale, weight))
    problems, (n, m) = alpha.shape[0], costs.shape[-2:]
    tiles = triton.cdiv(n, GRADIENT_BLOCK) * triton.cdiv(m, GRADIENT_BLOCK)
    shared = costs.shape[0] < problems
    strips = triton.plan_strips(tiles, problems, 4 * triton.processors(wide.device)) if shared else (problems, 1)
    number, each = strips
    out = wide.new_empty(number, n, m)
    with triton.on_device(wide.device):
        triton_kernels.plan_sum_kernel[(tiles * number,)](
            wide, alpha, beta, scale, weight, out, problems, each, n, m, shared, GRADIENT_BLOCK, num_warps=4
        )
    return out.sum(0, keepdim=True) if shared and number > 1 else out
