"""Entropic optimal transport between feature batches in plain PyTorch: any device, any float dtype, the oracle.

One log-domain iteration with a per-iteration scale serves Sinkhorn and IPOT; README.md beside this file derives it. The
cost matrix is stored, so memory is a few n x m matrices per problem. Nothing here synchronises with a device, so an
early stop ends the loop on the CPU only.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from .. import status
from ..tensors import accumulation_dtype
from .pairs import Pairs, below_dual, log_ratio, log_reference

CHECK_EVERY = 10  # iterations between two tests of tol
SUM_TOLERANCE = 1e-4  # how far a marginal's sum may be from 1


class SolveOptions(NamedTuple):
    """Checked options of one call of the op, and the outputs that the caller needs."""

    cost: str
    solver: str
    eps: float
    iters: int
    tol: float | None
    value: str
    need_x: bool
    need_y: bool
    need_a: bool  # gradients of masses: with value="dual" only
    need_b: bool
    reach_a: float | None = None  # weight of the KL term that relaxes the marginal a; None: the marginal is met
    reach_b: float | None = None
    need_error: bool = True  # False: no marginal error, for given costs only

    @property
    def relaxed(self) -> bool:
        """Whether at least one marginal is relaxed."""
        return self.reach_a is not None or self.reach_b is not None


class SolveResult(NamedTuple):
    """The outputs of the op in its order, for every backend. A gradient that is not needed has shape [0]."""

    value: Tensor  # [G]
    alpha: Tensor  # [G, n] log-scaling of the rows, -inf at zero mass
    beta: Tensor  # [G, m] log-scaling of the columns, -inf at zero mass
    scale: Tensor  # [G] s of the last iteration that was run
    marginal_error: Tensor  # [G] sum_i |row sum_i - a_i|
    iterations: Tensor  # [G] int32
    grad_x: Tensor  # [G, n, d] d value / d x, in the accumulation dtype
    grad_y: Tensor  # [G, m, d]
    grad_a: Tensor  # [G, n]
    grad_b: Tensor  # [G, m]


def unwritten(like: Tensor, g: tuple[int, ...], n: int, m: int, d: int, options: SolveOptions) -> SolveResult:
    """Memory for the results of problems of leading shape `g`, of `like`'s dtype and device."""
    new, dual = like.new_empty, options.value == "dual"  # on that device, whatever the default device is
    return SolveResult(
        new(g),
        new((*g, n)),
        new((*g, m)),
        new(g),
        new(g),
        new(g, dtype=torch.int32),
        new((*g, n, d) if options.need_x else (0,)),
        new((*g, m, d) if options.need_y else (0,)),
        new((*g, n) if options.need_a and dual else (0,)),
        new((*g, m) if options.need_b and dual else (0,)),
    )


def masses(mass: Tensor | None, features: Tensor) -> Tensor:
    """The masses [G, n] of `features` [G, n, d], contiguous in the accumulation dtype; uniform if not given."""
    g, n, _ = features.shape
    dtype = accumulation_dtype(features.dtype)
    if mass is None:
        return torch.full((g, n), 1.0 / n, dtype=dtype, device=features.device)
    return mass.to(dtype).contiguous()


def ot_solve(
    x: Tensor,  # [G, n, d]
    y: Tensor,  # [G, m, d]
    a: Tensor,  # [G, n] in the accumulation dtype
    b: Tensor,  # [G, m]
    options: SolveOptions,
    pairs: Pairs | None = None,
) -> SolveResult:
    """Solve G problems and differentiate their values with respect to what is needed."""
    x, y = x.to(a.dtype), y.to(a.dtype)
    costs = cost_matrix(x, y, options.cost)  # [G, n, m]
    log_r = log_reference(a, b, pairs) if pairs is not None and pairs.rho > 0 else None  # [G, n, m]
    core, p = solve_costs(costs, a, b, options, log_r)
    value = core.value
    if options.value == "dual" and log_r is not None and pairs is not None:
        value = value - below_dual(log_ratio(a, b, pairs), pairs.rho, options.eps)
    return with_feature_grads(core._replace(value=value), costs, p, x, y, options)


def with_feature_grads(
    solved: SolveResult, costs: Tensor, p: Tensor, x: Tensor, y: Tensor, options: SolveOptions
) -> SolveResult:
    """`solved` with the needed gradients of x and y, made from `costs` and their plan `p`, both [G, n, m]."""
    if options.cost == "euclidean" and (options.need_x or options.need_y):
        p = torch.where(costs > 0, p / (2 * costs), 0)  # dC = d(C^2) / 2C; 0 where two points coincide
    if options.need_x:
        solved = solved._replace(grad_x=feature_grad(p, x, y, options.cost))
    if options.need_y:
        solved = solved._replace(grad_y=feature_grad(p.mT, y, x, options.cost))
    return solved


def solve_costs(
    costs: Tensor, a: Tensor, b: Tensor, options: SolveOptions, log_r: Tensor | None = None
) -> tuple[SolveResult, Tensor]:
    """The solve of costs [G, n, m], or [1, n, m] for all problems, without feature gradients; and its plan."""
    alpha, beta, scale, iterations = iterate(costs, a, b, options, log_r)
    p = plan(costs, alpha, beta, scale, log_r)
    rows, columns = p.sum(-1), p.sum(-2)
    none = [p.new_empty(0) for _ in range(4)]  # four tensors, because outputs of an op must not alias
    grad_a, grad_b = none[2:]
    if options.value == "dual":
        f, g = potentials(costs, a, b, alpha, beta, options, log_r)
        # <P, C> + eps * sum P log(P / ab), and eps * log(P_ij / a_i b_j) = f_i + g_j - C_ij.
        value = (rows * f).sum(-1) + (columns * g).sum(-1)
        if options.relaxed:
            value = value + relaxation(rows, columns, a, b, options).to(value.dtype)
        grad_a = mass_grad(f, b, options.reach_a, options) if options.need_a else grad_a
        grad_b = mass_grad(g, a, options.reach_b, options) if options.need_b else grad_b
    else:
        value = (p * costs).sum((-2, -1))
    error = _row_error(rows, wanted_rows(a, alpha, options))
    return SolveResult(value, alpha, beta, scale, error, iterations, none[0], none[1], grad_a, grad_b), p


def damping(reach: float | None, eps: float) -> float:
    """The factor of a half step's log-sum-exp: 1 for a marginal that is met."""
    return 1.0 if reach is None else reach / (reach + eps)


def wanted_rows(a: Tensor, alpha: Tensor, options: SolveOptions) -> Tensor:
    """The row sums [G, n] of P at convergence with these `alpha`: a, or a exp(-f / reach) if relaxed."""
    if options.reach_a is None:
        return a
    off = torch.where(a > 0, alpha - a.log(), 0)  # f / eps
    return a * torch.exp(-off * (options.eps / options.reach_a))


def relaxation(rows: Tensor, columns: Tensor, a: Tensor, b: Tensor, options: SolveOptions) -> Tensor:
    """The terms [G] that relaxed marginals add to the dual value <P, C> + eps sum P log(P / ab).

    They are the KL terms of both marginals, KL(p | q) = sum p log(p / q) - p + q, and eps times the difference of the
    masses of a b^T and P.
    """
    rows, columns, a, b = (t.double() for t in (rows, columns, a, b))  # differences of nearly equal numbers
    extra = options.eps * (a.sum(-1) * b.sum(-1) - rows.sum(-1))
    for sums, mass, reach in ((rows, a, options.reach_a), (columns, b, options.reach_b)):
        if reach is not None:
            log_ratio = torch.where((mass > 0) & (sums > 0), (sums / mass).log(), 0)
            extra = extra + reach * (sums * log_ratio - sums + mass).sum(-1)
    return extra


def mass_grad(potential: Tensor, other: Tensor, reach: float | None, options: SolveOptions) -> Tensor:
    """The dual value's gradient in the masses that have `potential`. `other` [G, m]: the other masses."""
    if not options.relaxed:
        return potential
    received = 1.0 if reach is None else torch.exp(-potential / reach)  # row sum over mass, at convergence
    own = potential if reach is None else reach * (1 - received)
    return own + options.eps * (other.sum(-1, keepdim=True) - received)


def ot_plan(x: Tensor, y: Tensor, alpha: Tensor, beta: Tensor, scale: Tensor, cost: str) -> Tensor:
    """P [G, n, m] from the potentials of any backend, in their dtype."""
    return plan(cost_matrix(x.to(alpha.dtype), y.to(alpha.dtype), cost), alpha, beta, scale)


def cost_matrix(x: Tensor, y: Tensor, cost: str) -> Tensor:
    """C [G, n, m] of x [G, n, d] and y [G, m, d].

    Squared distances come from differences, not from |x|^2 + |y|^2 - 2<x, y>. That form cancels: its error, divided by
    a small eps, would outweigh the distance of two near points.
    """
    if cost == "cosine":
        return torch.matmul(_unit_rows(x)[0], _unit_rows(y)[0].mT).neg_().add_(1)
    distance = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    return distance if cost == "euclidean" else distance.square_()


def iterate(
    costs: Tensor,  # [G, n, m], or [1, n, m] for all problems
    a: Tensor,  # [G, n]
    b: Tensor,  # [G, m]
    options: SolveOptions,
    log_r: Tensor | None = None,  # [G, n, m] added to every exponent, see `log_reference`
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """alpha [G, n], beta [G, m], scale [G] and iterations [G] after at most `iters` iterations."""
    extrapolate = options.solver == "ipot"
    eps, iters, tol = options.eps, options.iters, options.tol
    damp_a, damp_b = damping(options.reach_a, eps), damping(options.reach_b, eps)
    log_a, log_b = a.log(), b.log()  # -inf at zero mass, and so are the potentials there from the start
    alpha = torch.where(a > 0, 0.0, log_a)
    beta = beta_prev = torch.where(b > 0, 0.0, log_b)
    scale = a.new_zeros(a.shape[0])
    iterations = torch.zeros(a.shape[0], dtype=torch.int32, device=a.device)
    active = torch.ones(a.shape[0], dtype=torch.bool, device=a.device)
    for t in range(1, iters + 1):
        s = (t if extrapolate else 1) / eps
        # Never extrapolate a masked column: 2 * (-inf) - (-inf) is NaN.
        bx = torch.where(b > 0, 2 * beta - beta_prev, beta) if extrapolate else beta
        alpha_new = log_a - damp_a * torch.logsumexp(_exponent(bx.unsqueeze(-2), costs, s, log_r), -1)
        beta_new = log_b - damp_b * torch.logsumexp(_exponent(alpha_new.unsqueeze(-1), costs, s, log_r), -2)
        beta_prev = beta
        alpha = torch.where(active.unsqueeze(-1), alpha_new, alpha)
        beta = torch.where(active.unsqueeze(-1), beta_new, beta)
        scale = torch.where(active, s, scale)
        iterations += active
        if tol is not None and t % CHECK_EVERY == 0 and t < iters:
            rows = plan(costs, alpha, beta, scale, log_r).sum(-1)
            error = _row_error(rows, wanted_rows(a, alpha, options))
            active = active & ~(error <= tol)
            if active.device.type == "cpu" and not active.any():
                break
    return alpha, beta, scale, iterations


def _exponent(potential: Tensor, costs: Tensor, s: float, log_r: Tensor | None) -> Tensor:
    exponent = torch.sub(potential, costs, alpha=s)
    return exponent if log_r is None else exponent.add_(log_r)


def plan(costs: Tensor, alpha: Tensor, beta: Tensor, scale: Tensor, log_r: Tensor | None = None) -> Tensor:
    """P = exp(alpha_i + beta_j - s * C_ij + log_r_ij), [G, n, m]; exactly 0 where a marginal is."""
    exponent = torch.mul(costs, -scale[:, None, None])
    if log_r is not None:
        exponent.add_(log_r)
    return exponent.add_(alpha.unsqueeze(-1)).add_(beta.unsqueeze(-2)).exp_()


def potentials(
    costs: Tensor, a: Tensor, b: Tensor, alpha: Tensor, beta: Tensor, options: SolveOptions, log_r: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """f = eps * (alpha - log a) [G, n] and g = eps * (beta - log b) [G, m], sinkhorn only.

    Where a mass is zero the potential is its c-transform, f_i = -eps * LSE_j(beta_j - C_ij / eps). It is finite and, at
    convergence, the limit of f_i as the mass goes to zero.
    """
    eps = options.eps
    f_extended = -damping(options.reach_a, eps) * torch.logsumexp(
        _exponent(beta.unsqueeze(-2), costs, 1 / eps, log_r), -1
    )
    g_extended = -damping(options.reach_b, eps) * torch.logsumexp(
        _exponent(alpha.unsqueeze(-1), costs, 1 / eps, log_r), -2
    )
    f = torch.where(a > 0, alpha - a.log(), f_extended)
    g = torch.where(b > 0, beta - b.log(), g_extended)
    return f.mul_(eps), g.mul_(eps)


def feature_grad(p: Tensor, x: Tensor, y: Tensor, cost: str) -> Tensor:
    """sum_j P_ij dC_ij / dx_i, [G, n, d]. C is the cosine cost, or the squared distance for every other cost."""
    if cost == "cosine":
        unit, length = _unit_rows(x)
        grad = torch.matmul(p, _unit_rows(y)[0]).neg_()  # at the unit row
        return (grad - (grad * unit).sum(-1, keepdim=True) * unit) / length
    centre = y.mean(-2, keepdim=True)  # the gradient depends on differences only, so a common offset is removed first
    return 2 * (p.sum(-1, keepdim=True) * (x - centre) - torch.matmul(p, y - centre))


def flag_inputs(x: Tensor, y: Tensor, a: Tensor, b: Tensor, cost: str, relaxed: bool = False) -> Tensor:
    """Problems with a bad value, bool [G]. On the CPU the first one raises a ValueError that names argument and row."""
    bad = torch.zeros(x.shape[0], dtype=torch.bool, device=x.device)

    where = functools.partial(_where, x.shape[0] > 1)
    for name, rows in (("x", x), ("y", y)):
        wrong = ~rows.isfinite().all(-1)  # [G, n]
        status.guard(
            wrong,
            status.Code.OT_INPUT,
            lambda at, name=name: ValueError(f"{where(name, 'row', at)} holds NaN or inf; expected finite values"),
        )
        bad |= wrong.any(-1)
    bad |= flag_masses(a, b, relaxed)
    if cost == "cosine":
        for name, rows, mass in (("x", x, a), ("y", y, b)):
            wrong = (rows == 0).all(-1) & (mass > 0)  # [G, n]
            status.guard(
                wrong,
                status.Code.ZERO_ROW,
                lambda at, name=name: ValueError(
                    f"{where(name, 'row', at)} is zero, which has no direction for cost='cosine'; "
                    "expected a nonzero row or zero mass"
                ),
            )
            bad |= wrong.any(-1)
    return bad


def flag_masses(a: Tensor, b: Tensor, relaxed: bool) -> Tensor:
    """Problems, bool [G], whose masses are not >= 0, finite and of sum 1 (`relaxed`: of a positive, finite sum)."""
    bad = torch.zeros(a.shape[0], dtype=torch.bool, device=a.device)
    several = a.shape[0] > 1
    expected = "a positive, finite sum" if relaxed else f"sum 1 (to {SUM_TOLERANCE:g})"
    for name, mass in (("a", a), ("b", b)):
        wrong = ~(mass.isfinite() & (mass >= 0))  # [G, n]
        status.guard(
            wrong,
            status.Code.MARGINAL,
            lambda at, name=name, mass=mass: ValueError(
                f"{_where(several, name, 'entry', at)} is {mass[at].item()}; expected a finite mass >= 0"
            ),
        )
        bad |= wrong.any(-1)
        total = mass.sum(-1)
        fits = (total > 0) & total.isfinite() if relaxed else (total - 1).abs() <= SUM_TOLERANCE
        status.guard(
            ~fits,
            status.Code.MARGINAL,
            lambda at, name=name, total=total: ValueError(
                f"{name}: expected masses with {expected}, got sum {total[at].item():.6g}"
                + (f" in problem {at[0]}" if several else "")
            ),
        )
        bad |= ~fits
    return bad


def _where(several: bool, name: str, kind: str, at: tuple[int, ...]) -> str:
    return f"{name}: {kind} {at[1]}" + (f" of problem {at[0]}" if several else "")


def poison(bad: Tensor, solved: SolveResult) -> SolveResult:
    """`solved` with NaN in every floating-point result, gradients included, of the problems that `bad` [G] marks."""

    def masked(t: Tensor) -> Tensor:
        if not t.is_floating_point() or t.numel() == 0:
            return t
        return torch.where(bad.view(-1, *[1] * (t.dim() - 1)), math.nan, t)

    return SolveResult(*map(masked, solved))


def _row_error(rows: Tensor, a: Tensor) -> Tensor:
    return (rows - a).abs().sum(-1)  # [G]


def _unit_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of x over their length, and the length [..., 1], which is 1 for a zero row.

    A row is divided by its largest entry first, so that squares neither overflow nor vanish.
    """
    peak = x.abs().amax(-1, keepdim=True)
    peak = peak.masked_fill(peak == 0, 1)
    scaled = x / peak
    length = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    length = length.masked_fill(length == 0, 1)
    return scaled / length, length * peak


def regime(n: int, m: int, dim: int, dtype: torch.dtype = torch.float32, problems: int = 1) -> tuple[str, str]:
    """(name, reason) of the only regime."""
    size = problems * n * m * (8 if accumulation_dtype(dtype) == torch.float64 else 4)
    return "resident", f"costs [{problems}, {n}, {m}] of {size:,} bytes and about as much four times over"
