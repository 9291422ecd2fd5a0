"""Solvers of an entropic transport problem between two batches, each in its best comparable setting.

A provider is made for one case and one pair of batches and gives two calls: `forward()` -> value, and
`gradient()` -> (value, d value / d x, d value / d y), the arrays in whatever type it likes. What is not installed, or
does not do a case, returns None. All run the same number of iterations; the cost is 1 - cos.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from wcord_fast import functional as F


@dataclass(frozen=True)
class Case:
    """One problem size and solver."""

    n: int
    dim: int = 128
    solver: str = "sinkhorn"
    eps: float = 0.05
    iters: int = 50


@dataclass
class Calls:
    """The two calls of a provider, and the numbers to compare its results with."""

    forward: Callable[[], Any]
    gradient: Callable[[], tuple[Any, Any, Any]]
    value: str = "cost"  # or "dual"
    same_gradient: bool = True  # False: it differentiates something else, and only the value is compared


def _leaves(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x.clone().requires_grad_(), y.clone().requires_grad_()


def _calls(cost: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, **kwargs: Any) -> Calls:
    """A differentiable cost of two tensors as a provider's calls."""
    gx, gy = _leaves(x, y)

    def forward():
        with torch.no_grad():
            return cost(x, y)

    def gradient():
        value = cost(gx, gy)
        return value.detach(), *torch.autograd.grad(value, (gx, gy))

    return Calls(forward, gradient, **kwargs)


def ours(backend: str):
    """This library, with the backend named."""

    def make(case: Case, x: Tensor, y: Tensor) -> Calls:
        options = {"solver": case.solver, "eps": case.eps, "iters": case.iters, "backend": backend}
        return _calls(lambda x, y: F.ot_cost(x, y, **options), x, y)

    return make


def streaming(case: Case, x: Tensor, y: Tensor) -> Calls:
    """Ours with no memory for a matrix."""
    calls = ours("native")(case, x, y)

    def lean(call: Callable[[], Any]) -> Callable[[], Any]:
        def run():
            with mock.patch.dict(os.environ, WCORD_FAST_OT_BYTES="0"):
                return call()

        return run

    return Calls(lean(calls.forward), lean(calls.gradient))


def op_alone(case: Case, x: Tensor, y: Tensor) -> Calls:
    """Ours without autograd: the op that returns the value and, if needed, the gradients."""

    def solve(gradient: bool):
        options = ("cosine", case.solver, case.eps, case.iters, None, "cost")
        return torch.ops.wcord_fast.ot_solve(x, y, None, None, *options, gradient, gradient, False, False, "native")

    def gradient():
        out = solve(True)
        return out[0], out[6], out[7]

    return Calls(lambda: solve(False)[0], gradient)


def costs(x: Tensor, y: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize
    return 1 - unit(x, dim=-1) @ unit(y, dim=-1).mT


def log_step(c: Tensor, beta: Tensor, bx: Tensor, s: float, log_a: float, log_b: float) -> tuple[Tensor, Tensor]:
    """One iteration as everybody writes it: two log-sum-exps."""
    alpha = log_a - torch.logsumexp(bx - s * c, -1)
    return alpha, log_b - torch.logsumexp(alpha.unsqueeze(-1) - s * c, -2)


def log_plan(c: Tensor, case: Case, step=log_step) -> Tensor:
    """The plan of the log-domain loop, differentiable if c is."""
    n, m = c.shape
    beta = beta_prev = c.new_zeros(m)
    alpha, s = c.new_zeros(n), 1 / case.eps
    for t in range(1, case.iters + 1):
        s = (t if case.solver == "ipot" else 1) / case.eps
        bx = 2 * beta - beta_prev if case.solver == "ipot" else beta
        beta_prev = beta
        alpha, beta = step(c, beta, bx, s, -math.log(n), -math.log(m))
    return torch.exp(alpha.unsqueeze(-1) + beta - s * c)


def naive(case: Case, x: Tensor, y: Tensor) -> Calls:
    """The log-domain loop, differentiated through all its iterations."""

    def cost(x, y):
        c = costs(x, y)
        return (log_plan(c, case) * c).sum()

    return _calls(cost, x, y, same_gradient=False)


def _envelope(plan: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Calls:
    def cost(x, y):
        c = costs(x, y)
        with torch.no_grad():
            p = plan(c.detach())
        return (p * c).sum()

    return _calls(cost, x, y)


def naive_envelope(case: Case, x: Tensor, y: Tensor) -> Calls:
    """The naive loop without a graph: the gradient takes the plan as constant."""
    return _envelope(lambda c: log_plan(c, case), x, y)


def compiled_envelope(case: Case, x: Tensor, y: Tensor) -> Calls:
    """`naive_envelope` with its step under torch.compile."""
    step = torch.compile(log_step, dynamic=False)
    if case.solver == "ipot":  # s changes every step: a tensor, or every step is compiled anew
        return _envelope(lambda c: log_plan(c, case, lambda c, b, bx, s, *m: step(c, b, bx, c.new_tensor(s), *m)), x, y)
    return _envelope(lambda c: log_plan(c, case, step), x, y)


def exp_once(case: Case, x: Tensor, y: Tensor) -> Calls:
    """Plain PyTorch with one exp per solve: scalings by matrix-vector products (not safe at small eps)."""

    def plan(c):
        n, m = c.shape
        k = torch.exp(c * (-1 / case.eps))
        if case.solver == "ipot":
            sigma, p = c.new_full((m,), 1 / m), torch.ones_like(k)
            for _ in range(case.iters):
                q = k * p
                delta = 1 / n / (q @ sigma)
                sigma = 1 / m / (delta @ q)
                p = delta.unsqueeze(-1) * q * sigma
            return p
        v = c.new_ones(m)
        for _ in range(case.iters):
            u = 1 / n / (k @ v)
            v = 1 / m / (u @ k)
        return u.unsqueeze(-1) * k * v

    return _envelope(plan, x, y)


def pot(method: str):
    """Python Optimal Transport on torch tensors; its plan, detached."""

    def make(case: Case, x: Tensor, y: Tensor) -> Calls | None:
        if case.solver != "sinkhorn" or importlib.util.find_spec("ot") is None:
            return None
        import ot

        run = {"sinkhorn": ot.bregman.sinkhorn_knopp, "log": ot.bregman.sinkhorn_log}[method]
        a, b = x.new_full((len(x),), 1 / len(x)), y.new_full((len(y),), 1 / len(y))
        options = {"numItermax": case.iters, "stopThr": 0.0, "warn": False}
        return _envelope(lambda c: run(a, b, c, case.eps, **options), x, y)

    return make


def geomloss(case: Case, x: Tensor, y: Tensor) -> Calls | None:
    """GeomLoss, tensorized: |x - y|^2 / 2 on unit rows is 1 - cos; annealed so that it takes about as many steps."""
    if case.solver != "sinkhorn" or importlib.util.find_spec("geomloss") is None:
        return None
    from geomloss import SamplesLoss

    blur, diameter = math.sqrt(case.eps), 2.0
    scaling = (blur / diameter) ** (1 / (case.iters - 2))
    loss = SamplesLoss(
        "sinkhorn", p=2, blur=blur, scaling=scaling, diameter=diameter, debias=False, backend="tensorized"
    )
    unit = torch.nn.functional.normalize
    return _calls(lambda x, y: loss(unit(x, dim=-1), unit(y, dim=-1)), x, y, value="dual")


def ott(lse: bool):
    """OTT-JAX, jitted; lse_mode off is its kernel mode."""

    def make(case: Case, x: Tensor, y: Tensor) -> Calls | None:
        if case.solver != "sinkhorn" or importlib.util.find_spec("ott") is None:
            return None
        import jax
        from ott.geometry import costs as ott_costs
        from ott.geometry import pointcloud
        from ott.problems.linear import linear_problem
        from ott.solvers.linear import sinkhorn

        solver = sinkhorn.Sinkhorn(
            lse_mode=lse, threshold=0.0, max_iterations=case.iters, min_iterations=case.iters, inner_iterations=10
        )

        def cost(x, y):
            geometry = pointcloud.PointCloud(x, y, cost_fn=ott_costs.Cosine(), epsilon=case.eps)
            return solver(linear_problem.LinearProblem(geometry)).reg_ot_cost

        jx, jy = jax.numpy.asarray(x.numpy()), jax.numpy.asarray(y.numpy())
        forward, both = jax.jit(cost), jax.jit(jax.value_and_grad(cost, (0, 1)))

        def gradient():
            value, grads = both(jx, jy)
            return jax.block_until_ready((value, *grads))

        return Calls(lambda: jax.block_until_ready(forward(jx, jy)), gradient, value="dual")

    return make


PROVIDERS: dict[str, Callable[[Case, Tensor, Tensor], Calls | None]] = {
    "ours, native": ours("native"),
    "ours, native, no autograd": op_alone,
    "ours, native, streaming": streaming,
    "ours, reference": ours("reference"),
    "naive, unrolled": naive,
    "naive, envelope": naive_envelope,
    "exp once, plain PyTorch": exp_once,
    "torch.compile, envelope": compiled_envelope,
    "POT": pot("sinkhorn"),
    "POT, log": pot("log"),
    "GeomLoss": geomloss,
    "OTT-JAX, log": ott(True),
    "OTT-JAX, kernel": ott(False),
}
