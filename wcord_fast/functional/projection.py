"""Doubly stochastic matrices from logits (Sinkhorn, Annals of Mathematical Statistics 1964)."""

from __future__ import annotations

from torch import Tensor

from ..ops import checks
from ..ops.first_order import first_order
from ..ops.sinkhorn import project as op
from ..ops.tensors import accumulation_dtype


@first_order
def sinkhorn_project(logits: Tensor, iters: int = 20, eps: float = 1.0, *, backend: str = "auto") -> Tensor:
    """exp(logits / eps) with its rows and then its columns normalised, `iters` times: many small square matrices.

    The column sums of the result are 1 to rounding, its row sums approach 1 with `iters`.

    Args:
        logits: [..., n, n], n at most 16; finite; fp16, bf16, fp32 or fp64; any strides.
        iters: normalisations of the rows, each followed by one of the columns.
        eps: temperature; a smaller one gives a result nearer to a permutation, after more iterations.
        backend: "auto", "reference" (any device) or "native" (CPU).

    Returns:
        [..., n, n] in the dtype of the logits, computed in fp32 (fp64 for fp64). The gradient is that of the
        iterations that ran, not of their limit.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, option, or (on the CPU) logits that are NaN or infinite, or
            overflow when they are divided by eps.
        NotImplementedError: n above 16; backend="triton", or "native" on CUDA; second derivatives, forward mode, and
            the transforms of `torch.func`.
    """
    if not isinstance(logits, Tensor) or logits.dim() < 2:
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        error = ValueError if isinstance(logits, Tensor) else TypeError
        raise error(f"logits: expected a tensor [..., n, n], got {shape}")
    n = logits.shape[-1]
    checks.tensor("logits", logits, shape=(*logits.shape[:-2], "n", "n"))
    if logits.shape[-2] != n:
        raise ValueError(f"logits: expected square matrices [..., n, n], got {list(logits.shape)}")
    if n > op.MOST:
        raise NotImplementedError(
            f"logits: expected n of at most {op.MOST}, got {n}; ot_plan_from_matrix solves larger problems"
        )
    iters = checks.integer("iters", iters, least=1, below=2**31)
    eps = checks.divisor("eps", eps, accumulation_dtype(logits.dtype))
    checks.choice("backend", backend, ("auto", "native", "triton", "reference"))
    if logits.numel() == 0:
        return logits.clone()  # keeps the graph
    return op.project(logits.reshape(-1, n, n), eps, iters, backend).view(logits.shape)
