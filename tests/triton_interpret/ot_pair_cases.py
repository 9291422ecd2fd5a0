"""Known pairs in the streaming Sinkhorn kernels, in Triton's interpreter, against the float64 reference.

Not collected by itself: test_ot_triton.py runs it in a process that has TRITON_INTERPRET=1.
"""

from __future__ import annotations

import pytest
import torch

from tests.ot_rule import assert_rule, solve_args, uniform
from tests.triton_interpret.ot_cases import COSTS, SOLVERS, features, masses, nan_in_fresh_memory  # noqa: F401
from wcord_fast.ops.sinkhorn import triton
from wcord_fast.ops.sinkhorn.pairs import Pairs, log_ratio


def labels(g, n, m, kinds, rho=0.9):
    """Rows without a partner, several of one label, columns without a row; labels beyond 32 bits."""
    rows = torch.arange(g * n).view(g, n) % (kinds + 1) - 1
    columns = torch.arange(g * m).view(g, m) % (kinds + 2) - 1
    return Pairs(*(torch.where(t < 0, t, t << 40) for t in (rows, columns)), rho)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_accuracy_of_every_output(cost, solver):
    x, y = features(0, 2, 19, 4), features(1, 2, 70, 4)
    a, b = masses(2, 2, 19, zeros=[0, 7]), masses(3, 2, 70, zeros=[*range(64), 69])
    args = solve_args(cost, solver, 0.1, 5, value="dual" if solver == "sinkhorn" else "cost")
    assert_rule(triton.ot_solve, x, y, a, b, args, pairs=labels(2, 19, 70, 6))


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 1), (1, 9, 2), (130, 65, 3), (17, 260, 8), (9, 6, 130)])
def test_shapes(cost, n, m, d):
    x, y = features(4, 1, n, d), features(5, 1, m, d)
    args = solve_args(cost, "ipot" if d % 2 else "sinkhorn", 0.5 if cost == "cosine" else 0.5 * d, 3)
    assert_rule(
        triton.ot_solve,
        x,
        y,
        uniform(x),
        uniform(y),
        args,
        pairs=labels(1, n, m, max(1, m - 1), 0.1 if n > m else 0.999),
    )


def test_the_weight_of_pairs_equals_the_reference_s():
    from wcord_fast.ops.sinkhorn.triton_pairs import known_pairs

    a, b, pairs = masses(6, 2, 45, zeros=[3]), masses(7, 2, 300, zeros=[0]), labels(2, 45, 300, 40)
    pairs.rows[1] = 7  # no multiple of 2^40: the problem has no pair
    known = known_pairs(a, b, pairs)
    assert torch.equal(known.rows[..., None] == known.columns[:, None], pairs.mask())
    torch.testing.assert_close(known.kappa.double(), log_ratio(a.double(), b.double(), pairs), rtol=1e-6, atol=0)
    assert known.kappa[1] == 0 < known.kappa[0]


@pytest.mark.parametrize("solver", SOLVERS)
def test_no_pair_and_rho_0_equal_the_problem_without_pairs_bit_for_bit(solver):
    x, y = features(8, 1, 12, 4), features(9, 1, 20, 4)
    value = "dual" if solver == "sinkhorn" else "cost"
    problem = (x, y, uniform(x), uniform(y), solve_args("cosine", solver, 0.2, 3, value=value))
    plain = triton.ot_solve(*problem)
    none = Pairs(torch.full((1, 12), -1), torch.full((1, 20), -1), 0.9)
    for pairs in (none, labels(1, 12, 20, 5, rho=0.0)):
        assert all(torch.equal(p, q) for p, q in zip(plain, triton.ot_solve(*problem, pairs), strict=True))
    assert not torch.equal(triton.ot_solve(*problem, labels(1, 12, 20, 5)).value, plain.value)


@pytest.mark.parametrize("solver", SOLVERS)
def test_tol_stops_on_the_error_with_pairs(solver):
    spread = torch.tensor([0.05, 2.0])
    x, y = (features(seed, 2, 12, 3) * spread[:, None, None] + 1 for seed in (18, 19))
    args = solve_args("cosine", solver, 0.5 if solver == "ipot" else 0.1, 12, tol=2e-3)
    assert_rule(triton.ot_solve, x, y, uniform(x), uniform(y), args, pairs=labels(2, 12, 12, 11))
