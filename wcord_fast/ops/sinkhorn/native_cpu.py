"""The solver in compiled code for CPU tensors: csrc/cpu/sinkhorn*.

Two regimes, chosen by size: *resident* keeps one n x m matrix per problem (one per thread for small problems of a
batch), *streaming* keeps none and recomputes strips of it in every sweep. README.md beside this file says how.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from .. import checks, native_module
from . import reference
from .reference import Asked, Pairs, Solved, accumulation_dtype

DEFAULT_BUDGET = 1 << 30  # bytes of stored matrices: n = m = 16384 in fp32


def solve_op(
    x: Tensor,  # [n, d] or [G, n, d]
    y: Tensor,  # [m, d] or [G, m, d]
    a: Tensor | None,  # [n] or [G, n]; None is uniform
    b: Tensor | None,  # [m] or [G, m]
    asked: Asked,
    pairs: Pairs | None = None,
) -> Solved:
    """As `reference.ot_solve`, in x's leading shape, and raising what `reference.flag_inputs` raises.

    Bad values are found by the solver, in the pass that reads them.
    """
    dtype = accumulation_dtype(x.dtype)
    x, y = _ready(x, dtype), _ready(y, dtype)
    a, b = a if a is None else _ready(a, dtype), b if b is None else _ready(b, dtype)
    g, n, m, d = x.shape[:-2], x.shape[-2], y.shape[-2], x.shape[-1]
    labels = () if pairs is None else (pairs.rows.contiguous(), pairs.columns.contiguous())
    solved = reference.unwritten(x, g, n, m, d, asked)
    fine = native_module.module().cpu_ot_solve(
        native_module.DTYPES[dtype],
        g[0] if g else 1,
        n,
        m,
        d,
        x.data_ptr(),
        y.data_ptr(),
        0 if a is None else a.data_ptr(),
        0 if b is None else b.data_ptr(),
        *[t.data_ptr() for t in solved],  # 0 for a gradient that is not needed: it is empty
        *([t.data_ptr() for t in labels] or (0, 0)),
        asked.cost == "cosine",
        asked.solver == "ipot",
        asked.eps,
        asked.iters,
        -1.0 if asked.tol is None else asked.tol,
        asked.value == "dual",
        0.0 if pairs is None else pairs.rho,
        budget(),
        native_module.threads(),
    )
    if not fine:
        x, y = (t if g else t.unsqueeze(0) for t in (x, y))
        a, b = (t if g or t is None else t.unsqueeze(0) for t in (a, b))
        reference.flag_inputs(
            x, y, reference.masses(a, x), reference.masses(b, y), asked.cost
        )  # names the first bad value
        raise ValueError(f"a, b: expected masses with sum 1 (to {reference.SUM_TOLERANCE:g})")
    return solved


def _ready(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t if t.dtype is dtype and t.is_contiguous() else t.to(dtype).contiguous()


def ot_plan(x: Tensor, y: Tensor, alpha: Tensor, beta: Tensor, scale: Tensor, cost: str) -> Tensor:
    """As `reference.ot_plan`, from the very cost that `ot_solve` saw: the columns meet their marginal to rounding."""
    dtype = alpha.dtype
    x, y, alpha, beta, scale = (t.to(dtype).contiguous() for t in (x, y, alpha, beta, scale))
    plan = x.new_empty((x.shape[0], x.shape[1], y.shape[1]))
    native_module.module().cpu_ot_plan_matrix(
        native_module.DTYPES[dtype],
        *plan.shape,
        x.shape[2],
        *(t.data_ptr() for t in (x, y, alpha, beta, scale, plan)),
        cost == "cosine",
        native_module.threads(),
    )
    return plan


def budget() -> int:
    """Bytes that stored matrices may take: WCORD_FAST_OT_BYTES, or 1 GiB."""
    text = os.environ.get("WCORD_FAST_OT_BYTES")
    if text is None:
        return DEFAULT_BUDGET
    try:
        return checks.integer("WCORD_FAST_OT_BYTES", int(text), least=0, below=2**63)
    except ValueError as e:
        raise ValueError(f"WCORD_FAST_OT_BYTES: expected a number of bytes, got {text!r}") from e


def regime(n: int, m: int, dim: int, dtype: torch.dtype = torch.float32, problems: int = 1) -> tuple[str, str]:
    """(name, why) of the way a call with these shapes would be solved."""
    code = native_module.DTYPES[accumulation_dtype(dtype)]
    limit = budget()
    resident, per_thread, scratch = native_module.module().cpu_ot_plan(
        code, problems, n, m, dim, True, True, limit, native_module.threads()
    )
    size = n * m * (8 if accumulation_dtype(dtype) == torch.float64 else 4)
    name = "resident" if resident else "streaming"
    sign = "<=" if resident else ">"
    how = "each thread solves problems of its own" if per_thread else "all threads share one problem"
    return name, f"{n} x {m} matrix of {size:,} bytes {sign} budget {limit:,}; {how}; scratch {scratch:,} bytes"
