"""The registered optimal-transport ops and their `autograd.Function`.

`wcord_fast::ot_solve` computes the value together with the gradients that are asked for; the Function keeps those
gradients and nothing else. The backend is resolved inside the op, hence at run time also under `torch.compile`.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .. import dispatch
from ..differentiable_once import differentiable_once
from ..library import register
from . import reference
from .reference import Solved, accumulation_dtype

_NOT_TWICE = "the gradient of an optimal-transport cost cannot be differentiated again: its plan is detached"

# Which module of this folder is which backend on which kind of device ("any": all that have no line of their own).
# A module has `ot_solve`, with the signature and result of reference.ot_solve; `regime(n, m, dim, dtype, problems)`,
# which says by what route it would solve; and `ot_plan`, like reference.ot_plan, if its cost rounds differently.
# With CHECKS_VALUES = True it gets masses that may be None (uniform) and finds bad values itself; otherwise masses are
# tensors, and bad values have been flagged, and are poisoned, here.
MODULES = {
    ("native", "cpu"): "native_cpu",
    ("reference", "any"): "reference",
}


@functools.cache
def module_of(backend: str, device: str) -> ModuleType:
    """The module that solves for `backend` on a kind of device; imported when it is first wanted."""
    name = MODULES.get((backend, device)) or MODULES[backend, "any"]
    return importlib.import_module(f".{name}", __package__)


def _solve_impl(
    x: Tensor,
    y: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    cost: str,
    solver: str,
    eps: float,
    iters: int,
    tol: float | None,
    value: str,
    need_x: bool,
    need_y: bool,
    need_a: bool,
    need_b: bool,
    backend: str,
) -> Solved:
    kind = x.device.type
    solver_module = module_of(dispatch.resolve("ot", device=kind, backend=backend).backend, kind)
    x, y = x.contiguous(), y.contiguous()
    options = (cost, solver, eps, iters, tol, value, need_x, need_y, need_a, need_b)
    if getattr(solver_module, "CHECKS_VALUES", False):
        dtype = accumulation_dtype(x.dtype)
        a, b = (None if mass is None else mass.to(dtype).contiguous() for mass in (a, b))
        return solver_module.ot_solve(x, y, a, b, *options)
    a, b = reference.masses(a, x), reference.masses(b, y)
    bad = reference.flag_inputs(x, y, a, b, cost)
    solved = solver_module.ot_solve(x, y, a, b, *options)
    return solved if kind == "cpu" else reference.poison(bad, solved)


def _solve_fake(
    x: Tensor,
    y: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    cost: str,
    solver: str,
    eps: float,
    iters: int,
    tol: float | None,
    value: str,
    need_x: bool,
    need_y: bool,
    need_a: bool,
    need_b: bool,
    backend: str,
) -> Solved:
    g, n, d = x.shape
    m = y.shape[1]

    def new(*shape: Any, needed: bool = True) -> Tensor:
        return x.new_empty(shape if needed else (0,), dtype=accumulation_dtype(x.dtype))

    return Solved(
        new(g),
        new(g, n),
        new(g, m),
        new(g),
        new(g),
        x.new_empty((g,), dtype=torch.int32),
        new(g, n, d, needed=need_x),
        new(g, m, d, needed=need_y),
        new(g, n, needed=need_a),
        new(g, m, needed=need_b),
    )


def _plan_impl(
    x: Tensor, y: Tensor, alpha: Tensor, beta: Tensor, scale: Tensor, cost: str, backend: str = "auto"
) -> Tensor:
    kind = x.device.type
    solver_module = module_of(dispatch.resolve("ot", device=kind, backend=backend).backend, kind)
    return getattr(solver_module, "ot_plan", reference.ot_plan)(x, y, alpha, beta, scale, cost)


def _plan_fake(
    x: Tensor, y: Tensor, alpha: Tensor, beta: Tensor, scale: Tensor, cost: str, backend: str = "auto"
) -> Tensor:
    return alpha.new_empty((x.shape[0], x.shape[1], y.shape[1]))


# Scalar and SymInt, not float and int: a compiled step whose eps is annealed is then traced once, not per value.
ot_solve_op = register(
    "ot_solve(Tensor x, Tensor y, Tensor? a, Tensor? b, str cost, str solver, Scalar eps, SymInt iters, "
    "Scalar? tol, str value, bool need_x, bool need_y, bool need_a, bool need_b, str backend) -> "
    "(Tensor value, Tensor alpha, Tensor beta, Tensor scale, Tensor marginal_error, Tensor iterations, "
    "Tensor grad_x, Tensor grad_y, Tensor grad_a, Tensor grad_b)",
    _solve_impl,
    _solve_fake,
)
ot_plan_op = register(
    'ot_plan(Tensor x, Tensor y, Tensor alpha, Tensor beta, Tensor scale, str cost, str backend="auto") -> Tensor',
    _plan_impl,
    _plan_fake,
)


class _Solve(torch.autograd.Function):
    """Value and detached extras of `ot_solve_op`; backward multiplies the saved gradients by grad_output."""

    @staticmethod
    def forward(ctx, x, y, a, b, options, needs, backend):
        out = Solved(*ot_solve_op(x, y, a, b, *options, *needs, backend))
        ctx.save_for_backward(out.grad_x, out.grad_y, out.grad_a, out.grad_b)
        ctx.dtypes = [None if t is None else t.dtype for t in (x, y, a, b)]
        ctx.needs = needs
        ctx.set_materialize_grads(False)
        extras = (out.alpha, out.beta, out.scale, out.marginal_error, out.iterations)
        ctx.mark_non_differentiable(*extras)
        return out.value, *extras

    @staticmethod
    def backward(ctx, grad_value, *_):
        grads: list[Tensor | None] = [None] * 4
        for i, saved in enumerate(ctx.saved_tensors):
            if ctx.needs[i] and grad_value is not None:
                # Multiplied before it is rounded to a narrow dtype, so that loss scaling does its work.
                grads[i] = (saved * grad_value.reshape(-1, *[1] * (saved.dim() - 1))).to(ctx.dtypes[i])
        return *differentiable_once(grads, _NOT_TWICE), None, None, None


def ot_solve(
    x: Tensor,  # [G, n, d]
    y: Tensor,  # [G, m, d]
    a: Tensor | None,  # [G, n]; None is uniform
    b: Tensor | None,  # [G, m]
    *,
    cost: str,
    solver: str,
    eps: float,
    iters: int,
    tol: float | None,
    value: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Differentiable solve of checked arguments: value, alpha, beta, scale, marginal error, iterations.

    Second derivatives are not defined (P is detached) and raise.
    """
    # The same tensor twice (a self term) cannot be traced through one autograd.Function.
    y = y.view_as(y) if y is x else y
    b = b.view_as(b) if b is not None and b is a else b
    recording = torch.is_grad_enabled()
    needs = tuple(recording and t is not None and t.requires_grad for t in (x, y, a, b))
    return _Solve.apply(x, y, a, b, (cost, solver, eps, iters, tol, value), needs, backend)
