"""Gather or dense, and by which backend: a small measured cost model of the two plans of the bank ops.

`gather` fetches each anchor's K rows (cost ~ B * K * D); `dense` multiplies all anchors with the whole bank and weights
the cells by membership (cost ~ B * N * D). Both give the same result to rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

from .. import dispatch, native_module
from ..dispatch import Choice
from ..sampling.spec import ALL

PLANS = ("gather", "dense")


@dataclass(frozen=True)
class Cost:
    """Nanoseconds of a direction of an NCE loss with gradient, per score, score and dimension, row and dimension.

    A score is a draw (gather) or a cell of anchors x bank rows (dense).
    """

    score: float
    score_dim: float
    bank_dim: float = 0.0


# (backend, plan, kind of device or instruction set of the CPU) -> cost, measured on one thread. Native: a least squares
# fit, `python -m bench bank --fit --simd NAME`; avx512 on a Zen 4 (EPYC), avx2 and portable on a Zen 3 (EPYC). avx2's
# gather is 0.85 of its fit, which had put dense first at K / N = 1/3, where every measured step has gather first.
# Reference: one shape, 1.3 us per draw and 45 ns per cell at D = 128.
COSTS = {
    ("native", "gather", "avx512"): Cost(7.8, 0.037, 0.42),
    ("native", "dense", "avx512"): Cost(1.2, 0.036, 0.94),
    ("native", "gather", "avx2"): Cost(15.2, 0.082, 0.69),
    ("native", "dense", "avx2"): Cost(3.3, 0.042, 1.2),
    ("native", "gather", "portable"): Cost(33.0, 0.11, 1.2),
    ("native", "dense", "portable"): Cost(7.5, 0.16, 0.91),
    ("reference", "gather", "cpu"): Cost(20.0, 10.0),
    ("reference", "dense", "cpu"): Cost(19.0, 0.2),
}
# Without a measurement: by the bytes moved, dense beats gathers from the L2 cache below N/K = 23.
UNMEASURED = {"gather": Cost(23.0, 0.0), "dense": Cost(1.0, 0.0)}


@dataclass(frozen=True)
class Problem:
    """The sizes that decide between the plans: B, N, K (or `ALL`) and D."""

    batch: int
    num_data: int
    k: int
    dim: int

    def nanoseconds(self, plan: str, cost: Cost) -> float:
        per_anchor = self.num_data if plan == "dense" or self.k == ALL else self.k
        bank = self.num_data * self.dim * cost.bank_dim
        return self.batch * per_anchor * (cost.score + self.dim * cost.score_dim) + bank


def choose(
    op: str,
    plan: str,
    problem: Problem,
    device: str,
    backend: str = "auto",
    unfit: Callable[[str, str], str | None] | None = None,
) -> Choice:
    """Plan and backend of one call: the cheaper plan by its own fastest backend, unless the user says which.

    Args:
        op: one of `dispatch.BANK_SCORES`.
        plan, backend: the user's choices.
        device: kind of device, "cpu" or "cuda".
        unfit: returns, for (backend, plan), the reason why it does not support this call's tensors, or None.
    Raises:
        NotImplementedError, RuntimeError: as `dispatch.resolve`, when no plan is left.
    """

    def resolved(name: str) -> Choice:
        own = (lambda candidate: unfit(candidate, name)) if unfit else None
        return dispatch.resolve(op, plan=name, device=device, backend=backend, unfit=own)

    if plan != "auto":
        result = resolved(plan)
        return replace(result, reason=f"{result.reason}; plan {plan}: asked for")
    able, refused = [], []
    for name in PLANS:
        try:
            able.append(resolved(name))
        except (NotImplementedError, RuntimeError) as e:
            refused.append(e)
    if not able:
        raise refused[0]
    fast = [c for c in able if c.backend != "reference"] or able
    if len(fast) == 1:
        (result,) = fast
        why = f"the only plan of backend {result.backend} here"
    else:
        result, why = _cheapest(fast, problem)
    return replace(result, reason=f"{result.reason}; plan {result.plan}: {why}")


def chosen(op: str, plan: str, problem: Problem, device: str, backend: str) -> Choice:
    """`choose` where nothing depends on the call's tensors, remembered; `backend` as `dispatch.requested` gives it."""
    return _chosen(op, plan, problem, device, backend, dispatch.cannot_run)


@functools.lru_cache(maxsize=256)
def _chosen(op, plan, problem, device, backend, _cannot_run) -> Choice:
    return choose(op, plan, problem, device, backend)


def _measured(choice: Choice) -> Cost | None:
    kind = choice.device
    if choice.backend == "native" and kind == "cpu":
        kind = native_module.module().simd()
    return COSTS.get((choice.backend, choice.plan, kind))


def _cheapest(choices: list[Choice], problem: Problem) -> tuple[Choice, str]:
    measured = [_measured(c) for c in choices]
    costs = [m or UNMEASURED[c.plan] for c, m in zip(choices, measured, strict=True)]
    if None in measured:  # a measured and an assumed cost do not compare
        costs = [UNMEASURED[c.plan] for c in choices]
    times = [problem.nanoseconds(c.plan, cost) for c, cost in zip(choices, costs, strict=True)]
    first = min(range(len(choices)), key=times.__getitem__)
    ratio = 1.0 if problem.k == ALL else problem.num_data / problem.k
    other = min(t for i, t in enumerate(times) if i != first)
    kind = "assumed" if None in measured else "measured"
    return choices[first], f"N/K = {ratio:.3g}, {other / times[first]:.3g} times cheaper by the {kind} costs"
