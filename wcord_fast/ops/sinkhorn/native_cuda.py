"""The solver in compiled code for CUDA tensors: csrc/cuda/sinkhorn*, one launch for a whole batch of solves.

Two regimes, chosen by size and number of problems: *resident*, one block per problem with its cost matrix in shared
memory, and *cooperative*, a group of blocks per problem in the shared memory of as many SMs. README.md beside this file
describes both. A problem that fits neither goes to another backend; `unavailable_reason` returns the reason. Nothing
here waits for the device.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from .. import native_module, status
from ..tensors import accumulation_dtype
from . import reference
from .native_fields import option_fields, pair_fields, problem_fields, result_fields
from .pairs import Pairs
from .reference import SolveOptions, SolveResult


class Plan(NamedTuple):
    """The regime in which a device solves n x m, and its sizes."""

    regime: str  # "none" (it cannot), "resident" or "cooperative"
    blocks: int  # of the grid; resident: an upper bound
    rows: int  # of the cost matrix in each block
    sms: int
    shared: int  # bytes of shared memory that a block can have


def ot_solve(
    x: Tensor,  # [n, d] or [G, n, d]
    y: Tensor,  # [m, d] or [G, m, d]
    a: Tensor | None,  # [n] or [G, n]; None is uniform
    b: Tensor | None,  # [m] or [G, m]
    options: SolveOptions,
    pairs: Pairs | None = None,  # labels of x's leading shape
) -> SolveResult:
    """`reference.ot_solve` in x's leading shape.

    The kernel detects bad values in the pass that reads them. A problem with one gets NaN in all its results and sets
    its bit in the device's status word. All memory belongs to the call, so calls on several streams and in graphs share
    none.

    Raises:
        NotImplementedError: the problem fits neither regime.
        RuntimeError: the launch failed.
    """
    dtype = accumulation_dtype(x.dtype)
    g, n, m, d = x.shape[:-2], x.shape[-2], y.shape[-2], x.shape[-1]
    device, _stream = native_module.stream_of(x)
    reason = unavailable_reason(n, m, d, x.dtype, device)
    if reason:
        raise NotImplementedError(f"backend='native': {reason}")
    problems = g[0] if g else 1
    chosen = plan(device, n, m, dtype, problems)
    x, y = x.contiguous(), y.contiguous()
    a, b = (None if mass is None else mass.to(dtype).contiguous() for mass in (a, b))
    like = x if x.dtype == dtype else x.new_empty(0, dtype=dtype)
    solved = reference.unwritten(like, g, n, m, d, options)
    labels, _alive = pair_fields(pairs)
    list_pairs = bool(labels) and options.solver == "ipot"
    scratch_bytes, zeroed_bytes = memory(chosen, dtype, problems, n, m, d, options.need_y, list_pairs)
    scratch = torch.empty(scratch_bytes, dtype=torch.uint8, device=x.device)
    zeroed = torch.zeros(zeroed_bytes // 8, dtype=torch.int64, device=x.device)
    native = native_module.module()
    record = native.OtSolve(
        **problem_fields(x, y, a, b, problems),
        **option_fields(options),
        **result_fields(solved),
        **labels,
        regime=native.OT_REGIMES[chosen.regime],
        blocks=chosen.blocks,
        rows=chosen.rows,
        scratch=scratch.data_ptr(),
        zeroed=zeroed.data_ptr(),
        **native_module.on_cuda(x),
    )
    native_module.check_launch("ot_solve", native.cuda_ot_solve(record))
    status.check_if_enabled(x.device)
    return solved


solve_op = ot_solve  # it handles layouts, missing masses and bad values itself, see backends.py


def unavailable_reason(
    n: int, m: int, dim: int, dtype: torch.dtype = torch.float32, device: int | None = None
) -> str | None:
    """The reason why a device (None: the current one) cannot solve n x m here, or None if it can."""
    native = native_module.module()
    if m > native.OT_CUDA_MAX_COLUMNS:
        return f"m = {m} is above the {native.OT_CUDA_MAX_COLUMNS} columns that one block sweeps"
    if dim > native.OT_CUDA_MAX_DIM:
        return f"D = {dim} is above {native.OT_CUDA_MAX_DIM}"
    device = torch.cuda.current_device() if device is None else device
    result = plan(device, n, m, accumulation_dtype(dtype))
    if result.regime != "none":
        return None
    return (
        f"a {n} x {m} matrix of {_size(n, m, dtype):,} bytes fits neither in one block "
        f"nor in strips in the shared memory of {result.sms} SMs ({result.shared:,} bytes each)"
    )


def regime(n: int, m: int, dim: int, dtype: torch.dtype = torch.float32, problems: int = 1) -> tuple[str, str]:
    """(name, reason) of the regime for these shapes on the current device; ("none", reason) if there is none."""
    reason = unavailable_reason(n, m, dim, dtype)
    if reason:
        return "none", reason
    result = plan(torch.cuda.current_device(), n, m, accumulation_dtype(dtype), problems)
    name = result.regime
    matrix = f"{n} x {m} matrix of {_size(n, m, dtype):,} bytes"
    if name == "resident":
        return name, f"{matrix} in one block; up to {result.blocks} of {problems} problems at once"
    strips = -(-n // result.rows)
    return name, (
        f"{matrix} in strips of {result.rows} rows on {strips} of {result.sms} SMs; "
        f"{result.blocks // strips} of {problems} problems at once"
    )


@functools.lru_cache(maxsize=1024)
def plan(device: int, n: int, m: int, dtype: torch.dtype, problems: int = 1) -> Plan:
    """The launchers' plan for `problems` of n x m on a device in the arithmetic of `dtype`.

    It asks the driver and does not wait.
    """
    native = native_module.module()
    record = native.OtPlan(**_sizes(dtype, problems, n, m, 1, False), device=device)
    native_module.check_launch("ot_solve", native.cuda_ot_plan(record))
    (regime,) = (name for name, code in native.OT_REGIMES.items() if code == record.regime)
    return Plan(regime, record.blocks, record.rows, record.sms, record.shared_bytes)


@functools.lru_cache(maxsize=1024)
def memory(
    chosen: Plan, dtype: torch.dtype, problems: int, n: int, m: int, dim: int, need_y: bool, list_pairs: bool = False
) -> tuple[int, int]:
    """Bytes of a call's memory: scratch, and the zeroed words (barrier, column totals) of a cooperative grid.

    `list_pairs`: ipot with known pairs, which keeps a list of them.
    """
    native = native_module.module()
    regime = native.OT_REGIMES[chosen.regime]
    sizes = _sizes(dtype, problems, n, m, dim, need_y)
    record = native.OtPlan(**sizes, regime=regime, blocks=chosen.blocks, rows=chosen.rows, list_pairs=list_pairs)
    native.cuda_ot_memory(record)
    return record.scratch_bytes, record.zeroed_bytes


def _sizes(dtype: torch.dtype, problems: int, n: int, m: int, dim: int, need_y: bool) -> dict[str, int]:
    code = native_module.dtype_code(dtype)
    sizes = {"dtype": code, "problems": problems, "n": n, "m": m, "dim": dim}
    return {**sizes, "want_grad_x": True, "want_grad_y": need_y}


def _size(n: int, m: int, dtype: torch.dtype) -> int:
    return n * m * accumulation_dtype(dtype).itemsize
