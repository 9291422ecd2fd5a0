"""Optimal transport between two batches of features: cost, plan, potentials and marginal errors.

Sources: LCKT of WCoRD (CVPR 2021, eq. 12 and 13); IPOT (Xie, Wang, Wang, Zha: "A fast proximal point method for
computing exact Wasserstein distance", 2018/UAI 2019); Sinkhorn (Cuturi, NeurIPS 2013); the debiased divergence of
Feydy et al. (AISTATS 2019).
"""

from __future__ import annotations

import functools
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..ops import checks
from ..ops.first_order import first_order
from ..ops.keywords import keywords_of
from ..ops.sinkhorn import autograd as op
from ..ops.sinkhorn.pairs import Pairs, log_reference
from ..ops.sinkhorn.reference import masses
from ..ops.tensors import accumulation_dtype
from .ot_options import OTOptions, OTRelaxedSolution, OTSolution, Reach, checked_options, marginals, solution

DIAGONAL = "diagonal"
DEFAULT_RHO = 0.9

KnownPairs: TypeAlias = str | tuple[Tensor, Tensor] | None


@first_order
def ot_cost(
    x: Tensor,
    y: Tensor,
    *,
    a: Tensor | None = None,
    b: Tensor | None = None,
    cost: str = "cosine",
    solver: str = "ipot",
    eps: float | None = None,
    iters: int = 50,
    tol: float | None = None,
    value: str = "cost",
    reach: Reach = None,
    debias: bool = False,
    pairs: KnownPairs = None,
    rho: float = DEFAULT_RHO,
    backend: str = "auto",
) -> Tensor:
    """Transport cost between the rows of x and the rows of y, differentiable in both.

    After `iters` iterations P is the plan between the masses a and b for C_ij = 1 - <x_i, y_j> / (|x_i| |y_j|)
    ("cosine") or |x_i - y_j|^2 ("sqeuclidean"). The plan's mass is 1.

    - value="cost": <P, C>, with the gradient sum_j P_ij dC_ij/dx_i (P detached: WCoRD eq. 13). An `a` or `b` that
      requires grad raises NotImplementedError.
    - value="dual" (sinkhorn only): <P, C> + eps * sum P log(P / (a b)); the gradient for x and y is that of "cost",
      which here is exact at convergence. The gradient for a and b is the potentials: defined up to a constant, so exact
      along changes that keep the sum of masses, and at a zero mass the potential's finite c-transform extension.
    - debias: OT(x, y) - OT(x, x) / 2 - OT(y, y) / 2, each of the value above.

    Args:
        x: [n, d] or [G, n, d], fp16, bf16, fp32 or fp64; any strides, never modified.
        y: [m, d] or [G, m, d], on the device of x. Where the dtypes of x, y and masses differ, they are promoted as by
            `torch.promote_types` (masses in fp32 leave narrower features as they are).
        a: [n] or [G, n], masses of x's rows, >= 0 with sum 1 (to 1e-4, not renormalised); None is uniform. In fp16 or
            bf16 a sum of 1 to their rounding is enough, which is normalised to 1 in fp32. A row of zero mass moves
            nothing and has zero gradient.
        b: [m] or [G, m], masses of y's rows.
        cost: "cosine", "sqeuclidean" or "euclidean" (|x_i - y_j|, whose gradient at coincident points is 0).
        solver: "ipot" (the plan is fed back: tends to the unregularised cost) or "sinkhorn".
        eps: regularisation > 0, in units of the cost; None is 0.5 for ipot and 0.05 for sinkhorn.
        iters: iterations, at least 1.
        tol: stop a problem when sum_i |sum_j P_ij - a_i| <= tol, tested after iterations 10, 20, ...; None runs all. If
            `iters` do not reach it, a warning says so, once per line of the caller (of `wcord_fast.check` on CUDA).
        value: "cost" or "dual".
        reach: relax the marginals (unbalanced transport, sinkhorn only): P minimises <P, C> + eps KL(P | a b^T) +
            reach KL(row sums | a) + reach KL(column sums | b), KL(p | q) = sum p log(p / q) - p + q. One number for
            both sides or a pair (rows, columns); None or inf is a marginal that is met. Then the masses may have any
            positive sums, "dual" is the value of this whole problem, and its gradient for a and b is exact at
            convergence without restriction. `OTSolution` has the marginals of P.
        debias: subtract the two self terms. (That the result is >= 0 is a theorem for the converged dual value.)
        pairs: known pairs: "diagonal" (row i of x and row i of y), or int64 labels (of x's
            rows [n] or [G, n], of y's rows [m] or [G, m]): rows of equal label are pairs, a negative label has none.
            The plan is then drawn to a reference plan R in place of a b^T: sinkhorn adds eps * KL(P | R), ipot starts
            from R / (a b^T). "cost" stays <P, C> with C as it is, "dual" is <P, C> + eps * sum P log(P / R).
        rho: mass that R has on the pairs, in [0, 1), the rest being spread as a b^T: 0 is the problem without pairs,
            bit for bit, and towards 1 the plan keeps to the pairs.
        backend: "auto", "reference", "native" or "triton".

    Returns:
        Scalar, or [G] for batched input; fp32 (fp64 for fp64 input). Gradients have the dtype of their input.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device, option, or (on the CPU) NaN or inf in x or y, a zero
            row with mass under "cosine", masses negative, not finite or of wrong sum. On CUDA such a problem's cost
            is NaN and `wcord_fast.check()` raises.
        NotImplementedError: gradient of a or b with value="cost" or with pairs; debias with pairs; an explicit backend
            that does not support the case (on CUDA `reach`, and "euclidean" with pairs, need "triton" or "reference";
            on the CPU the latter needs "reference").
    Not supported, and raising NotImplementedError: second derivatives (when they are reached), forward-mode
    differentiation, the transforms of `torch.func` (grad, vmap, ...).
    """
    options = checked_options(
        cost=cost, solver=solver, eps=eps, iters=iters, tol=tol, value=value, reach=reach, backend=backend
    )
    rho = _checked_rho(rho)
    plain = a is None and b is None and pairs is None and debias is False and _is_plain(x, y)
    if plain and _runs_natively(x, y, options):
        return op.native_cost(x, y, _plain_request(options, x.dtype))
    return _solve(x, y, a, b, options, debias, pairs, rho).cost


@first_order
@keywords_of(ot_cost)
def ot_solve(
    x: Tensor,
    y: Tensor,
    **options: Any,
) -> OTSolution | OTRelaxedSolution:
    """`ot_cost` together with the potentials, the marginal error and the number of iterations.

    Arguments and errors are those of `ot_cost`; see `OTSolution` for the result. Only `.cost` has a gradient.
    """
    return _solve(x, y, **_problem(**options))


@first_order
@keywords_of(ot_cost)
def ot_plan(
    x: Tensor,
    y: Tensor,
    **options: Any,
) -> Tensor:
    """The transport plan P [n, m] (or [G, n, m]) of `ot_cost` with equal arguments, for problems that fit in memory.

    The plan is detached: it carries no gradient, whatever x, y, a and b require. `value` and `debias` are checked
    and do not change it. Its dtype is fp32 (fp64 for fp64 input). Errors are those of `ot_cost`.
    """
    with torch.no_grad():
        problem = _problem(**options)
        a, b, pairs, rho = (problem[name] for name in ("a", "b", "pairs", "rho"))
        _check_together(problem["options"], problem["debias"], pairs)
        solved = _solve(x, y, **{**problem, "debias": False})
        x, y = _promoted(x.detach(), y.detach(), a, b)
        plan = op.ot_plan_op(x, y, *solved[1:4], problem["options"].cost, problem["options"].backend)
        return plan if pairs is None or rho == 0 else plan * _reference_factor(x, y, a, b, pairs, rho)


def _problem(*, a, b, debias, pairs, rho, **options) -> dict[str, Any]:
    """The keywords of `ot_cost` as arguments of `_solve`, with checked options."""
    checks.boolean("debias", debias)
    rho = _checked_rho(rho)
    return {"a": a, "b": b, "options": checked_options(**options), "debias": debias, "pairs": pairs, "rho": rho}


def _solve(
    x: Tensor,
    y: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    options: OTOptions,
    debias: bool,
    pairs: KnownPairs,
    rho: float,
) -> OTSolution | OTRelaxedSolution:
    """Solve the problem of a public function whose options and `rho` are checked."""
    debias = checks.boolean("debias", debias)
    _check_together(options, debias, pairs)
    if a is None and b is None and _is_plain(x, y):
        batched = x.dim() == 3
    else:
        batched = _check_problem(x, y, a, b)
        x, y = _promoted(x, y, a, b)
    _check_eps(x.dtype, options)
    known_pairs = None if pairs is None else _known_pairs(x, y, pairs, rho)
    if (options.value == "cost" or known_pairs is not None) and torch.is_grad_enabled():
        for name, mass in (("a", a), ("b", b)):
            if mass is not None and mass.requires_grad:
                without = "value='cost' has" if known_pairs is None else "known pairs have"
                raise NotImplementedError(
                    f"{name} requires grad, but {without} no gradient for masses; use "
                    + ("value='dual' or " if known_pairs is None else "")
                    + f"{name}.detach()"
                )
    if batched:
        a, b = (None if mass is None else mass.expand(rows.shape[:-1]) for mass, rows in ((a, x), (b, y)))
    dtype = accumulation_dtype(x.dtype)
    a, b = (solver_masses(mass, dtype, options.relaxed) for mass in (a, b))
    solver_options, backend = options[:6], options.backend
    result = op.ot_solve(x, y, a, b, *solver_options, backend, known_pairs, options.reach)
    solved = solution(*result, *marginals(result, a, b, options))
    if debias:
        self_x = op.ot_solve(x, x, a, a, *solver_options, backend)[0]
        self_y = op.ot_solve(y, y, b, b, *solver_options, backend)[0]
        solved = solved._replace(cost=solved.cost - 0.5 * (self_x + self_y))
    return solved


def _check_together(options: OTOptions, debias: bool, pairs: KnownPairs) -> None:
    """NotImplementedError for options that are not supported together."""
    if options.relaxed and (debias or pairs is not None):
        other = "debias" if debias else "pairs"
        raise NotImplementedError(f"reach={options.reach}: relaxed marginals are not supported together with {other}")
    if debias and pairs is not None:
        raise NotImplementedError("debias: the self terms of known pairs are not defined; expected debias=False")


def plain_value_and_gradient(
    x: Tensor, y: Tensor, *, cost: str, solver: str, eps: float, iters: int, backend: str
) -> tuple[Tensor, Tensor] | None:
    """Value, a scalar, and gradient in x of a plain `ot_cost` without autograd; None where it is not plain."""
    options = checked_options(
        cost=cost, solver=solver, eps=eps, iters=iters, tol=None, value="cost", reach=None, backend=backend
    )
    if not _is_plain(x, y) or x.dim() != 2 or not (x.is_cuda or _runs_natively(x, y, options)):
        return None
    value, grad, _ = op.value_and_gradients(x, y, _plain_request(options, x.dtype), True, False, backend)
    assert grad is not None  # need_x is True
    return value, grad


def _runs_natively(x: Tensor, y: Tensor, options: OTOptions) -> bool:
    """Whether a call with plain x and y, uniform masses and no pairs may enter the native code at once."""
    supported = options.tol is None and not options.relaxed and options.cost != "euclidean"
    return supported and op.runs_natively(x, y, options.backend)


@functools.lru_cache(maxsize=64)
def _plain_request(options: OTOptions, dtype: torch.dtype) -> op.SolveOptions:
    """The op's options for a plain call on features of `dtype`, without gradients. Cached, like `checked_options`."""
    _check_eps(dtype, options)
    return op.SolveOptions(*options[:6], False, False, False, False)


def _check_eps(dtype: torch.dtype, options: OTOptions) -> None:
    """Raise unless the largest scale of a cost is finite in the dtype in which features of `dtype` are solved."""
    checks.divisor("eps", options.eps, accumulation_dtype(dtype), options.iters if options.solver == "ipot" else 1)


def _checked_rho(rho: float) -> float:
    rho = checks.fraction("rho", rho)
    if rho == 1:
        raise ValueError("rho: expected a number in [0, 1), got 1: a plan on the pairs alone needs no solver")
    return rho


def _known_pairs(x: Tensor, y: Tensor, pairs: KnownPairs, rho: float) -> Pairs:
    """The pairs with labels of x's leading shape, checked."""
    leading_shape = x.shape[:-2]
    if isinstance(pairs, str):
        checks.choice("pairs", pairs, (DIAGONAL,))
        sides = tuple(torch.arange(t.shape[-2], device=x.device) for t in (x, y))
    else:
        if not isinstance(pairs, tuple | list) or len(pairs) != 2:
            text = f"{type(pairs).__name__}"
            raise TypeError(f"pairs: expected 'diagonal' or (labels of x's rows, labels of y's rows), got {text}")
        sides = tuple(pairs)
        for name, label, rows in (("pairs[0]", sides[0], x), ("pairs[1]", sides[1], y)):
            shared = isinstance(label, Tensor) and label.dim() == 1
            shape = tuple(rows.shape[-2:-1] if shared else rows.shape[:-1])
            checks.tensor(name, label, shape=shape, dtypes=(torch.int64,))
        checks.same_device(x=x, **{"pairs[0]": sides[0], "pairs[1]": sides[1]})
    rows, columns = (label.expand(*leading_shape, t.shape[-2]) for label, t in zip(sides, (x, y), strict=True))
    return Pairs(rows, columns, rho)


def _reference_factor(x, y, a, b, pairs, rho) -> Tensor:
    """R / (a b^T) [(G,) n, m] up to a constant: the plan's factor beside those of potentials and cost."""
    known, batched = _known_pairs(x, y, pairs, rho), x.dim() == 3
    if not batched:
        x, y, known = x.unsqueeze(0), y.unsqueeze(0), Pairs(known.rows[None], known.columns[None], known.rho)
    dtype = accumulation_dtype(x.dtype)  # as in the solve
    a, b = (
        masses(None if mass is None else solver_masses(mass.expand(rows.shape[:-1]), dtype, False), rows)
        for mass, rows in ((a, x), (b, y))
    )
    factor = log_reference(a, b, known).exp_()
    return factor if batched else factor[0]


def _is_plain(x: Tensor, y: Tensor) -> bool:
    """Whether x and y are plain dense float tensors that fit. If not, `_check_problem` raises or accepts them."""
    if type(x) is not Tensor or type(y) is not Tensor or x.is_nested or y.is_nested:  # a nested tensor has no shape
        return False
    x_shape, y_shape = x.shape, y.shape
    return (
        x.dtype is y.dtype
        and x.dtype in checks.FLOATS
        and x.device == y.device
        and len(x_shape) == len(y_shape) in (2, 3)
        and x_shape[-1] == y_shape[-1]
        and x_shape[:-2] == y_shape[:-2]
        and x.layout is y.layout is torch.strided
        and 0 not in x_shape
        and 0 not in y_shape
    )


def _promoted(x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None) -> tuple[Tensor, Tensor]:
    """x and y in one dtype: fp64 if one of the four is. Half-precision x and y stay so with fp32 masses."""
    dtype = torch.promote_types(x.dtype, y.dtype)
    if any(mass is not None and mass.dtype == torch.float64 for mass in (a, b)):
        dtype = torch.float64
    return x.to(dtype), y.to(dtype)


def solver_masses(mass: Tensor | None, dtype: torch.dtype, relaxed: bool) -> Tensor | None:
    """Masses in the dtype that the solver accumulates in.

    Masses in half precision, whose sum is 1 to their rounding only, are normalised to the sum 1. Masses further off
    and those of any sum (`relaxed`) are kept.
    """
    if mass is None:
        return None
    converted = mass.to(dtype)
    if mass.dtype.itemsize > 2 or relaxed:
        return converted
    total = converted.detach().sum(-1, keepdim=True)
    return converted / torch.where((total - 1).abs() <= torch.finfo(mass.dtype).eps, total, 1)


def _check_problem(x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None) -> bool:
    """Whether the input is batched; raises for the first shape, dtype or device that does not fit."""
    if isinstance(x, Tensor) and x.dim() not in (2, 3):
        raise ValueError(f"x: expected shape [n, d] or [G, n, d], got {list(x.shape)}")
    batched = isinstance(x, Tensor) and x.dim() == 3
    checks.tensor("x", x, shape=("G", "n", "d") if batched else ("n", "d"))
    checks.tensor("y", y, shape=(x.shape[0], "m", x.shape[2]) if batched else ("m", x.shape[1]))
    tensors = {"x": x, "y": y}
    for name, mass, rows in (("a", a, x), ("b", b, y)):
        if mass is None:
            continue
        shared = isinstance(mass, Tensor) and mass.dim() == 1 and batched  # one set of masses for all problems
        checks.tensor(name, mass, shape=tuple(rows.shape[1:-1] if shared else rows.shape[:-1]))
        tensors[name] = mass
    checks.same_device(**tensors)
    return batched
