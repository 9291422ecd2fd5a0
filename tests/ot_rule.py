"""The accuracy rule for fp32 solvers of entropic optimal transport.

At equal iterations the error against the float64 reference is at most 1e-5 of the value, 1e-4 of the potentials and
1e-4 of the gradient, or twice (the gradient three times) that of the fp32 PyTorch loop on the same data, which
at small eps is itself far above these. The loop's error is taken as the largest over orders of its sums: one order may
be lucky.
"""

from __future__ import annotations

import torch

from wcord_fast.ops.sinkhorn import reference

ORDERS = 3


def uniform(rows):
    """Masses [G, n] of rows [G, n, d], in the accumulation dtype."""
    g, n, _ = rows.shape
    return torch.full((g, n), 1 / n, dtype=reference.accumulation_dtype(rows.dtype), device=rows.device)


def solve_args(cost, solver, eps, iters, *, tol=None, value="cost"):
    """The options of a backend's `ot_solve` after x, y, a and b, with every gradient."""
    return reference.SolveOptions(cost, solver, eps, iters, tol, value, True, True, value == "dual", value == "dual")


def assert_rule(solve, x, y, a, b, args, *, lattice=False, pairs=None):
    """Check solve(x, y, a, b, args) and return it. `x` to `b` are fp32; `pairs`: known pairs, a last argument of solve.

    On a `lattice` the loop may make no error at all, since costs and their quotients are whole numbers; one rounding of
    an exponent, which no fp32 solver avoids elsewhere, is then allowed beside the rule.
    """
    ours = solve(x, y, a, b, args) if pairs is None else solve(x, y, a, b, args, pairs)
    exact = reference.ot_solve(x.double(), y.double(), a.double(), b.double(), args, pairs)
    loops = [permuted_loop(x, y, a, b, args, seed, pairs) for seed in range(ORDERS)]
    assert torch.equal(ours.iterations, exact.iterations)
    torch.testing.assert_close(ours.scale.double(), exact.scale, rtol=1e-6, atol=0)
    largest = float(reference.cost_matrix(x.double(), y.double(), args.cost).max())
    if args.cost == "cosine":
        largest = max(largest, 1.0)  # 1 - <x, y> is rounded at the size of 1
    rounding = 6e-8 * float(exact.scale.max()) * largest  # of an exponent: no row sum is known better
    assert (ours.marginal_error - exact.marginal_error).abs().max() <= 1e-5 + 4 * rounding
    for name, fraction, times, least in (
        ("value", 1e-5, 2, 3e-7 * largest),
        ("alpha", 1e-4, 2, 1e-6),
        ("beta", 1e-4, 2, 1e-6),
        ("grad_x", 1e-4, 3, 1e-7),
        ("grad_y", 1e-4, 3, 1e-7),
        ("grad_a", 1e-4, 3, 1e-6),
        ("grad_b", 1e-4, 3, 1e-6),
    ):
        expected = getattr(exact, name)
        # Of potentials only the sums of a row's and a column's matter: one near zero is known to the size of the other.
        other = {"alpha": "beta", "beta": "alpha", "grad_a": "grad_b", "grad_b": "grad_a"}.get(name, name)
        scale = max(size(expected), size(getattr(exact, other)))
        error, *plain = (distance(getattr(s, name), expected) for s in (ours, *loops))
        fraction = max(fraction, rounding) if lattice else fraction
        assert error <= max(fraction * scale, times * max(plain), least), (name, error, plain, scale)
    return ours


def permuted_loop(x, y, a, b, args, seed, pairs=None):
    """The fp32 reference with rows, columns and coordinates in another order, its results in the given one."""
    generator = torch.Generator().manual_seed(seed)
    i, j, k = (torch.randperm(s, generator=generator).to(x.device) for s in (x.shape[1], y.shape[1], x.shape[2]))
    if pairs is not None:
        pairs = pairs._replace(rows=pairs.rows[:, i], columns=pairs.columns[:, j])
    s = reference.ot_solve(x[:, i][..., k], y[:, j][..., k], a[:, i], b[:, j], args, pairs)

    def back(t, order):
        return t if t.numel() == 0 else torch.empty_like(t).index_copy_(1, order, t)

    def coordinates(t):
        return t if t.numel() == 0 else torch.empty_like(t).index_copy_(2, k, t)

    return s._replace(
        alpha=back(s.alpha, i),
        beta=back(s.beta, j),
        grad_x=coordinates(back(s.grad_x, i)),
        grad_y=coordinates(back(s.grad_y, j)),
        grad_a=back(s.grad_a, i),
        grad_b=back(s.grad_b, j),
    )


def distance(actual, expected):
    """Largest difference of [G, n] potentials, norm of the difference of gradients; equal infinities count as equal."""
    difference = torch.where(actual.double() == expected, 0.0, actual.double() - expected)
    return float(difference.norm() if expected.dim() == 3 else difference.abs().amax()) if expected.numel() else 0.0


def size(expected):
    finite = expected[expected.isfinite()]
    return float(expected.norm() if expected.dim() == 3 else finite.abs().amax()) if expected.numel() else 0.0
