"""A solve as fields of the `OtSolve` record of csrc/common/sinkhorn.h."""

from __future__ import annotations

import functools

from torch import Tensor

from .. import native_module
from .matrix_reference import MatrixResult
from .pairs import Pairs
from .reference import CHECK_EVERY, SUM_TOLERANCE, SolveOptions, SolveResult


def problem_fields(x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, problems: int) -> dict[str, int]:
    """The fields of contiguous features [..., n, D], [..., m, D] and marginals. The tensors must outlive the call."""
    return {
        "dtype": native_module.dtype_code(x.dtype),
        "problems": problems,
        "n": x.shape[-2],
        "m": y.shape[-2],
        "dim": x.shape[-1],
        "x": x.data_ptr(),
        "y": y.data_ptr(),
        "a": 0 if a is None else a.data_ptr(),
        "b": 0 if b is None else b.data_ptr(),
    }


@functools.lru_cache(maxsize=64)
def option_fields(options: SolveOptions) -> dict[str, int | float]:
    """The fields of the options, without the gradients. The result is cached: callers must not change it."""
    return {"cost": native_module.module().OT_COSTS[options.cost], **solver_fields(options)}


def solver_fields(options: SolveOptions) -> dict[str, int | float]:
    """The fields that do not depend on what makes the costs; a record of given costs has them too."""
    native = native_module.module()
    return {
        "solver": native.OT_SOLVERS[options.solver],
        "value": native.OT_VALUES[options.value],
        "eps": options.eps,
        "iters": options.iters,
        "tol": -1.0 if options.tol is None else options.tol,
        "check_every": CHECK_EVERY,
        "sum_tolerance": SUM_TOLERANCE,
    }


def pair_fields(pairs: Pairs | None) -> tuple[dict[str, int | float], tuple[Tensor, ...]]:
    """The fields of known pairs, and the tensors to keep alive until the call has read them."""
    if pairs is None or pairs.rho == 0:
        return {}, ()
    labels = pairs.rows.contiguous(), pairs.columns.contiguous()
    rows, columns = labels
    return {"row_labels": rows.data_ptr(), "column_labels": columns.data_ptr(), "rho": pairs.rho}, labels


def result_fields(solved: SolveResult | MatrixResult) -> dict[str, int]:
    """The fields of the outputs. A gradient that is not needed is empty, so its address is 0."""
    return {field: out.data_ptr() for field, out in zip(_FIELDS[type(solved)], solved, strict=True)}


_OUTPUTS = ("out_value", "out_alpha", "out_beta", "out_scale", "out_error", "out_iterations")
_FIELDS = {
    SolveResult: (*_OUTPUTS, "grad_x", "grad_y", "grad_a", "grad_b"),
    MatrixResult: (*_OUTPUTS, "grad_a", "grad_b"),
}
