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


class Sizes(NamedTuple):
    """What decides on the regime and the memory of a call."""

    dtype: torch.dtype  # of the arithmetic
    problems: int
    n: int
    m: int
    dim: int  # of the features; 0 if the costs are given
    need_y: bool = False  # the gradient of y
    list_pairs: bool = False  # ipot with known pairs, which keeps a list of them
    given: bool = False


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
    x, y = x.contiguous(), y.contiguous()
    a, b = (None if mass is None else mass.to(dtype).contiguous() for mass in (a, b))
    like = x if x.dtype == dtype else x.new_empty(0, dtype=dtype)
    solved = reference.unwritten(like, g, n, m, d, options)
    labels, _alive = pair_fields(pairs)
    list_pairs = bool(labels) and options.solver == "ipot"
    sizes = Sizes(dtype, problems, n, m, d, options.need_y, list_pairs)
    fields = problem_fields(x, y, a, b, problems), option_fields(options), result_fields(solved), labels
    launch(x, sizes, **{name: value for part in fields for name, value in part.items()})
    return solved


def launch(on: Tensor, sizes: Sizes, /, **fields: int | float) -> None:
    """Start a solve of these sizes on the device of `on` and its current stream.

    `fields` are those of the record OtSolve that say what is solved. The tensors that they address must outlive the
    call.

    Raises:
        RuntimeError: the launch failed.
    """
    native = native_module.module()
    chosen = plan(native_module.stream_of(on)[0], *sizes[2:4], *sizes[:2], sizes.given)
    scratch_bytes, zeroed_bytes = memory(chosen, sizes)
    scratch = torch.empty(scratch_bytes, dtype=torch.uint8, device=on.device)
    zeroed = torch.zeros(zeroed_bytes // 8, dtype=torch.int64, device=on.device)
    record = native.OtSolve(
        **fields,
        regime=native.OT_REGIMES[chosen.regime],
        blocks=chosen.blocks,
        rows=chosen.rows,
        scratch=scratch.data_ptr(),
        zeroed=zeroed.data_ptr(),
        **native_module.on_cuda(on),
    )
    native_module.check_launch("ot_solve", native.cuda_ot_solve(record))
    status.check_if_enabled(on.device)


solve_op = ot_solve  # it handles layouts, missing masses and bad values itself, see backends.py


def unavailable_reason(
    n: int, m: int, dim: int, dtype: torch.dtype = torch.float32, device: int | None = None, given: bool = False
) -> str | None:
    """The reason why a device (None: the current one) cannot solve n x m here, or None if it can.

    `given`: the costs are given, and `dim` is 0.
    """
    native = native_module.module()
    if m > native.OT_CUDA_MAX_COLUMNS:
        return f"m = {m} is above the {native.OT_CUDA_MAX_COLUMNS} columns that one block sweeps"
    if dim > native.OT_CUDA_MAX_DIM:
        return f"D = {dim} is above {native.OT_CUDA_MAX_DIM}"
    device = torch.cuda.current_device() if device is None else device
    result = plan(device, n, m, accumulation_dtype(dtype), 1, given)
    if result.regime != "none":
        return None
    return (
        f"a {n} x {m} matrix of {_size(n, m, dtype):,} bytes fits neither in one block "
        f"nor in strips in the shared memory of {result.sms} SMs ({result.shared:,} bytes each)"
    )


def regime(
    n: int, m: int, dim: int, dtype: torch.dtype = torch.float32, problems: int = 1, given: bool = False
) -> tuple[str, str]:
    """(name, reason) of the regime for these shapes on the current device; ("none", reason) if there is none."""
    reason = unavailable_reason(n, m, dim, dtype, given=given)
    if reason:
        return "none", reason
    result = plan(torch.cuda.current_device(), n, m, accumulation_dtype(dtype), problems, given)
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
def plan(device: int, n: int, m: int, dtype: torch.dtype, problems: int = 1, given: bool = False) -> Plan:
    """The launchers' plan for `problems` of n x m on a device in the arithmetic of `dtype`.

    It asks the driver and does not wait.
    """
    native = native_module.module()
    record = native.OtPlan(**_fields(Sizes(dtype, problems, n, m, 0 if given else 1, given=given)), device=device)
    native_module.check_launch("ot_solve", native.cuda_ot_plan(record))
    (regime,) = (name for name, code in native.OT_REGIMES.items() if code == record.regime)
    return Plan(regime, record.blocks, record.rows, record.sms, record.shared_bytes)


@functools.lru_cache(maxsize=1024)
def memory(chosen: Plan, sizes: Sizes) -> tuple[int, int]:
    """Bytes of a call's memory: scratch, and the zeroed words (barrier, column totals) of a cooperative grid."""
    native = native_module.module()
    regime = native.OT_REGIMES[chosen.regime]
    record = native.OtPlan(**_fields(sizes), regime=regime, blocks=chosen.blocks, rows=chosen.rows)
    native.cuda_ot_memory(record)
    return record.scratch_bytes, record.zeroed_bytes


def _fields(sizes: Sizes) -> dict[str, int]:
    """The sizes as fields of the record OtPlan."""
    names = ("problems", "n", "m", "dim", "want_grad_y", "list_pairs", "given")
    fields = dict(zip(names, sizes[1:], strict=True))
    return {**fields, "dtype": native_module.dtype_code(sizes.dtype), "want_grad_x": sizes.dim > 0}


def _size(n: int, m: int, dtype: torch.dtype) -> int:
    return n * m * accumulation_dtype(dtype).itemsize
