"""The solver in compiled code for CUDA tensors: csrc/cuda/sinkhorn*, one launch for a whole batch of solves.

Two regimes, chosen by size: *resident*, one block per problem with its cost matrix in shared memory, and
*cooperative*, one problem at a time in the shared memory of all SMs. README.md beside this file says how. What fits
neither is for another backend: `why_not` has the reason. Nothing here waits for the device.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from .. import native_module, status
from . import reference
from .reference import Asked, Solved, accumulation_dtype

# The codes of csrc/cuda/sinkhorn.h and sinkhorn_entry.h.
COSTS = {"cosine": 0, "sqeuclidean": 1}
SOLVERS = {"sinkhorn": 0, "ipot": 1}
VALUES = {"cost": 0, "dual": 1}
REGIMES = ("none", "resident", "cooperative")
MAX_COLUMNS = 4096
MAX_DIM = 2**27


class Plan(NamedTuple):
    """How a device solves n x m; `regime` is a place in REGIMES."""

    regime: int
    blocks: int  # of the grid; resident: at most
    rows: int  # of the cost matrix in each block
    sms: int
    shared: int  # bytes that a block can have


def ot_solve(
    x: Tensor,  # [n, d] or [G, n, d]
    y: Tensor,  # [m, d] or [G, m, d]
    a: Tensor | None,  # [n] or [G, n]; None is uniform
    b: Tensor | None,  # [m] or [G, m]
    asked: Asked,
) -> Solved:
    """As `reference.ot_solve`, in x's leading shape.

    Bad values are found by the kernel, in the pass that reads them: such a problem has NaN in all its results and sets
    its bit in the device's status word. All memory belongs to the call, so calls on several streams and in graphs
    do not meet.

    Raises:
        NotImplementedError: the problem fits neither regime.
        RuntimeError: the launch failed.
    """
    dtype = accumulation_dtype(x.dtype)
    g, n, m, d = x.shape[:-2], x.shape[-2], y.shape[-2], x.shape[-1]
    device, stream = native_module.stream_of(x)
    reason = why_not(n, m, d, x.dtype, device)
    if reason:
        raise NotImplementedError(f"backend='native': {reason}")
    chosen = plan(device, n, m, dtype == torch.float64)
    x, y = x.contiguous(), y.contiguous()
    a, b = (None if mass is None else mass.to(dtype).contiguous() for mass in (a, b))
    like = x if x.dtype == dtype else x.new_empty(0, dtype=dtype)
    solved = reference.unwritten(like, g, n, m, d, asked)
    problems = g[0] if g else 1
    scratch_bytes, zeroed_bytes = memory(chosen, dtype == torch.float64, problems, n, m, d, asked.need_y)
    scratch = torch.empty(scratch_bytes, dtype=torch.uint8, device=x.device)
    zeroed = torch.zeros(zeroed_bytes // 8, dtype=torch.int64, device=x.device)
    code = native_module.module().cuda_sinkhorn(
        device,
        stream,
        chosen.regime,
        chosen.blocks,
        chosen.rows,
        x.data_ptr(),
        y.data_ptr(),
        native_module.DTYPES[x.dtype],
        0 if a is None else a.data_ptr(),
        0 if b is None else b.data_ptr(),
        problems,
        n,
        m,
        d,
        COSTS[asked.cost],
        SOLVERS[asked.solver],
        float(asked.eps),
        min(asked.iters, 2**31 - 1),
        -1.0 if asked.tol is None else float(asked.tol),
        VALUES[asked.value],
        *[t.data_ptr() for t in solved],  # 0 for a gradient that is not needed: it is empty
        scratch.data_ptr(),
        zeroed.data_ptr(),
        status.word(x.device).data_ptr(),
    )
    native_module.check_launch("ot_solve", code)
    status.check_if_asked(x.device)
    return solved


solve_op = ot_solve  # layouts, missing masses and bad values are its own business


def why_not(n: int, m: int, dim: int, dtype: torch.dtype = torch.float32, device: int | None = None) -> str | None:
    """Why n x m cannot be solved here on a device (None: the current one), or None if it can."""
    if m > MAX_COLUMNS:
        return f"m = {m} is above the {MAX_COLUMNS} columns that one block sweeps"
    if dim > MAX_DIM:
        return f"D = {dim} is above {MAX_DIM}"
    found = plan(torch.cuda.current_device() if device is None else device, n, m, _wide(dtype))
    if found.regime:
        return None
    return (
        f"a {n} x {m} matrix of {_size(n, m, dtype):,} bytes fits neither in one block "
        f"nor in strips in the shared memory of {found.sms} SMs ({found.shared:,} bytes each)"
    )


def regime(n: int, m: int, dim: int, dtype: torch.dtype = torch.float32, problems: int = 1) -> tuple[str, str]:
    """(name, why) of the way a call with these shapes is solved on the current device; ("none", why) if it is not."""
    reason = why_not(n, m, dim, dtype)
    if reason:
        return REGIMES[0], reason
    found = plan(torch.cuda.current_device(), n, m, _wide(dtype))
    name = REGIMES[found.regime]
    matrix = f"{n} x {m} matrix of {_size(n, m, dtype):,} bytes"
    if name == "resident":
        return name, f"{matrix} in one block; up to {found.blocks} of {problems} problems at once"
    return name, f"{matrix} in strips of {found.rows} rows on {found.blocks} of {found.sms} SMs, problem by problem"


@functools.lru_cache(maxsize=1024)
def plan(device: int, n: int, m: int, fp64: bool) -> Plan:
    """What the launchers choose for n x m on a device; asks the driver, not the device."""
    out = torch.empty(5, dtype=torch.int64)
    code = native_module.module().cuda_sinkhorn_plan(device, int(fp64), n, m, out.data_ptr())
    native_module.check_launch("ot_solve", code)
    return Plan(*out.tolist())


@functools.lru_cache(maxsize=1024)
def memory(chosen: Plan, fp64: bool, problems: int, n: int, m: int, dim: int, need_y: bool) -> tuple[int, int]:
    """Bytes of a call's own memory: scratch; the barrier and column totals of a cooperative grid, zero at the start."""
    out = torch.empty(2, dtype=torch.int64)
    sizes = chosen.regime, int(fp64), chosen.blocks, problems, n, m, dim, int(need_y)
    native_module.module().cuda_sinkhorn_memory(*sizes, out.data_ptr())
    scratch, zeroed = out.tolist()
    return scratch, zeroed


def _wide(dtype: torch.dtype) -> bool:
    return accumulation_dtype(dtype) == torch.float64


def _size(n: int, m: int, dtype: torch.dtype) -> int:
    return n * m * (8 if _wide(dtype) else 4)
