"""The table of solvers, one module of this folder per backend and kind of device, and the op that calls them."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import torch
from torch import Tensor

from .. import dispatch
from ..dispatch import Choice
from . import reference
from .pairs import Pairs
from .reference import SolveOptions, SolveResult

# The module of each backend on each kind of device ("any": every kind without a line of its own). A module has
# - `ot_solve`, with the signature and result of reference.ot_solve: `solve` below makes batches and masses, flags bad
#   values, and poisons a device's bad problems; or `solve_op`, with the signature of `solve` without the backend: it
#   handles layouts, missing masses, a problem without G and bad values itself;
# - `regime(n, m, dim, dtype, problems)`, which returns the regime of such a solve and its reason;
# - `ot_plan`, like reference.ot_plan, if its cost rounds differently.
MODULES = {
    ("native", "cpu"): "native_cpu",
    ("native", "cuda"): "native_cuda",
    ("triton", "cuda"): "triton",
    ("triton", "cpu"): "triton",  # interpreted, in tests
    ("reference", "any"): "reference",
}


@functools.cache
def module_of(backend: str, device: str) -> ModuleType:
    """The module that solves for `backend` on a kind of device, imported at its first use."""
    name = MODULES.get((backend, device)) or MODULES[backend, "any"]
    return importlib.import_module(f".{name}", __package__)


NO_REACH = "relaxed marginals (reach) are not supported by the native CUDA code"
NO_REACH_WITH_PAIRS = "relaxed marginals (reach) go together with known pairs on the reference only"
NO_EUCLIDEAN_WITH_PAIRS = "cost='euclidean' and known pairs are not supported together by the native code"


def choose(
    x: Tensor, y: Tensor, backend: str = "auto", paired: bool = False, relaxed: bool = False, cost: str = "cosine"
) -> Choice:
    """The backend for x [.., n, d] and y [.., m, d]: `dispatch.resolve` among those that support the sizes.

    Args:
        paired: there are known pairs.
        relaxed: a marginal is relaxed.
    """
    sizes = x.shape[-2], y.shape[-2], x.shape[-1]
    return choose_for(*sizes, x.dtype, x.device.type, backend, x.device.index, paired, relaxed, cost)


def choose_for(
    n: int,
    m: int,
    dim: int,
    dtype: torch.dtype,
    kind: str,
    backend: str = "auto",
    index: int | None = None,
    paired: bool = False,
    relaxed: bool = False,
    cost: str = "cosine",
) -> Choice:
    """`choose` from sizes; `index`: number of the CUDA device, None for the current one."""

    def unfit(candidate: str) -> str | None:
        if candidate == "reference":
            return None
        if paired and relaxed:
            return NO_REACH_WITH_PAIRS
        if candidate == "triton":
            return module_of("triton", kind).unsupported(dtype)
        if paired and cost == "euclidean":
            return NO_EUCLIDEAN_WITH_PAIRS
        if kind == "cpu":
            return None
        return NO_REACH if relaxed else module_of("native", kind).unavailable_reason(n, m, dim, dtype, index)

    every = kind == "cpu" and not paired  # nothing depends on the call's tensors
    return dispatch.resolve("ot", device=kind, backend=backend, unfit=None if every else unfit)


def solve(
    x: Tensor,  # [n, d] or [G, n, d]
    y: Tensor,  # [m, d] or [G, m, d]
    a: Tensor | None,  # [n] or [G, n]; None is uniform
    b: Tensor | None,  # [m] or [G, m]
    options: SolveOptions,
    backend: str,
    pairs: Pairs | None = None,  # labels of x's leading shape
) -> tuple[Tensor, ...]:
    """The op: a `SolveResult` of x's leading shape, [] or [G]. A gradient that is not needed has shape [0]."""
    kind = x.device.type
    module = module_of(choose(x, y, backend, pairs is not None, options.relaxed, options.cost).backend, kind)
    if hasattr(module, "solve_op"):
        return module.solve_op(x, y, a, b, options, pairs)
    batched = x.dim() == 3
    if not batched:
        x, y = x.unsqueeze(0), y.unsqueeze(0)
        a, b = (None if mass is None else mass.unsqueeze(0) for mass in (a, b))
        if pairs is not None:
            pairs = pairs._replace(rows=pairs.rows.unsqueeze(0), columns=pairs.columns.unsqueeze(0))
    x, y = x.contiguous(), y.contiguous()
    a, b = reference.masses(a, x), reference.masses(b, y)
    bad = reference.flag_inputs(x, y, a, b, options.cost, options.relaxed)
    solved = module.ot_solve(x, y, a, b, options, pairs)
    if kind != "cpu":
        solved = reference.poison(bad, solved)
    return solved if batched else SolveResult(*(t.squeeze(0) if t.numel() or t.dim() > 1 else t for t in solved))


def plan(x: Tensor, y: Tensor, alpha: Tensor, beta: Tensor, scale: Tensor, cost: str, backend: str = "auto") -> Tensor:
    """P [n, m] or [G, n, m] of potentials that this backend has returned."""
    module = module_of(choose(x, y, backend).backend, x.device.type)
    run = getattr(module, "ot_plan", reference.ot_plan)
    if x.dim() == 3:
        return run(x, y, alpha, beta, scale, cost)
    x, y, alpha, beta, scale = (t.unsqueeze(0) for t in (x, y, alpha, beta, scale))
    return run(x, y, alpha, beta, scale, cost).squeeze(0)
