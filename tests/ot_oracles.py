"""Independent float64 optimal transport in NumPy, written from the textbooks: scalings, never potentials.

Sinkhorn is Cuturi's u, v iteration on K = exp(-C / eps); IPOT is Xie et al.'s plan feedback T <- K * T with one
inner step. Both underflow at small eps: there `sinkhorn_log` sums exponentials pairwise instead.
"""

import numpy as np
import torch

from wcord_fast import functional as F


def features(seed, *shape, dtype=torch.float64):
    """Gaussian features of any shape. Features of two dtypes differ by rounding only."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


def masses(seed, *shape, zeros=(), dtype=torch.float64):
    """Random masses with sum 1 along the last axis, zero at the positions `zeros`."""
    w = np.random.default_rng(seed).uniform(0.2, 1.0, shape)
    w[..., list(zeros)] = 0
    return torch.from_numpy(w / w.sum(-1, keepdims=True)).to(dtype)


def cost_matrix(x, y, cost):
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    c = np.empty((len(x), len(y)))
    for i, xi in enumerate(x):
        for j, yj in enumerate(y):
            if cost == "cosine":
                c[i, j] = 1 - xi.dot(yj) / np.sqrt(xi.dot(xi) * yj.dot(yj))
            else:
                c[i, j] = ((xi - yj) ** 2).sum()
    return np.sqrt(c) if cost == "euclidean" else c


def ratio(mass, received):
    """mass / received, and 0 where there is no mass."""
    return np.divide(mass, received, out=np.zeros_like(mass), where=mass > 0)


def sinkhorn(c, a, b, eps, iters):
    """The plan after `iters` row and column scalings."""
    k = np.exp(-c / eps)
    v = np.ones(len(b))
    for _ in range(iters):
        u = ratio(a, k @ v)
        v = ratio(b, k.T @ u)
    return u[:, None] * k * v


def relaxed_sinkhorn(c, a, b, eps, iters, reach_a, reach_b):
    """The plan after `iters` damped row and column scalings; masses are positive, and a reach may be infinite."""
    power_a, power_b = (1 / (1 + eps / reach) for reach in (reach_a, reach_b))
    k = np.exp(-c / eps)
    v = np.ones(len(b))
    for _ in range(iters):
        u = a * (k @ v) ** -power_a
        v = b * (k.T @ u) ** -power_b
    return u[:, None] * k * v


def ipot(c, a, b, eps, iters):
    """The plan after `iters` proximal steps, each with one inner scaling."""
    k = np.exp(-c / eps)
    sigma = np.full(len(b), 1 / len(b))
    plan = np.ones_like(c)
    for _ in range(iters):
        q = k * plan
        delta = ratio(a, q @ sigma)
        sigma = ratio(b, q.T @ delta)
        plan = delta[:, None] * q * sigma
    return plan


def sinkhorn_log(c, a, b, eps, iters):
    """`sinkhorn` with logarithms in place of the scalings."""
    v = np.zeros(len(b))
    for _ in range(iters):
        u = np.log(a) - np.logaddexp.reduce(v - c / eps, axis=1)
        v = np.log(b) - np.logaddexp.reduce(u[:, None] - c / eps, axis=0)
    return np.exp(u[:, None] + v - c / eps)


PLANS = {"sinkhorn": sinkhorn, "ipot": ipot}


def solve(x, y, a, b, cost, solver, eps, iters):
    """(value <P, C>, P) of one problem."""
    c = cost_matrix(x, y, cost)
    plan = PLANS[solver](c, np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64), eps, iters)
    return float((plan * c).sum()), plan


def torch_cost(x, y, cost):
    """C [n, m] by plain differentiable PyTorch, for the gradient tests."""
    if cost == "cosine":
        return 1 - torch.nn.functional.normalize(x, dim=-1) @ torch.nn.functional.normalize(y, dim=-1).mT
    return (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1)


def solve_with_grad(x, y, **options):
    """The library's `SolveResult`, and the gradients of its cost in x and y."""
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    solved = F.ot_solve(x, y, **options)
    return solved, *torch.autograd.grad(solved.cost.sum(), (x, y))
