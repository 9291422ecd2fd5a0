"""Why a call runs the way it does."""

from __future__ import annotations

from dataclasses import replace

import torch

from .ops import checks, dispatch
from .ops.bank.plan import PLANS, Problem, choose
from .ops.contrast import op as contrast
from .ops.dispatch import Choice
from .ops.sampling.spec import ALL
from .ops.sinkhorn import backends, matrix

FUNCTIONS = {  # functional -> op
    **dict.fromkeys(("ot_cost", "ot_plan", "ot_solve"), "ot"),
    **dict.fromkeys(("ot_cost_from_matrix", "ot_plan_from_matrix", "ot_solve_from_matrix"), "ot_matrix"),
    "sinkhorn_project": "ot_project",
    "bank_update_": "bank_update",
    **dict.fromkeys(("batch_infonce", "batch_sigmoid"), "batch"),
}

FROM_SUMS = "no plan, but sums of its rows by class in O(B * D)"


def explain(
    op: str,
    *,
    num_data: int | None = None,
    k: int | str | None = None,
    batch: int = 64,
    n: int | None = None,
    m: int | None = None,
    dim: int = 128,
    problems: int = 1,
    pairs: bool = False,
    dtype: torch.dtype = torch.float32,
    plan: str = "auto",
    backend: str = "auto",
    device: torch.device | str = "cpu",
) -> Choice:
    """The plan and backend that a call of `op` takes in this process, and the reason.

    Args:
        op: "bank_nce", "bank_mean_score", "bank_log_z", "bank_infonce", "bank_sigmoid", "bank_update", "bank_init",
            "batch", "draw", "ot", "ot_matrix" or "ot_project"; or the name of a function in `wcord_fast.functional`.
        num_data, k, batch: N, K ("all" for the whole pool, also with expected=True) and B of a bank op; N and K are
            needed with plan="auto", and ignored with another.
        n, m, problems: rows of both sides and number of problems of "ot": with n given (m is n by default), the
            result names the regime (resident, streaming, ...) too. Of "ot_matrix": of problems with one matrix.
        dtype: type of the features ("batch", and "ot" with n given) or of the cost matrix ("ot_matrix").
        pairs: whether the call of "ot" has known pairs; needs n.
        dim: D, width of the features or of the bank.
        plan, backend: as in the call.
        device: the device of the tensors.
    Returns:
        A record with `plan`, `backend` and `reason`; `str()` of it is one line.
    Raises:
        NotImplementedError: the support table has no such row; the call would raise it too.
        RuntimeError: an explicit backend that the table has but that cannot run in this process.
        ValueError, TypeError: a wrong argument.
    """
    op = checks.choice("op", FUNCTIONS.get(op, op), dispatch.OPS)
    try:
        device_type = torch.device(device).type
    except (RuntimeError, TypeError):
        raise ValueError(f"device: expected 'cpu', 'cuda' or 'cuda:N', got {device!r}") from None
    requested = dispatch.requested(backend)
    dim = checks.integer("dim", dim, least=1)
    checks.choice("dtype", dtype, checks.FLOATS)
    if op == "ot" and n is not None:
        n, m = checks.integer("n", n, least=1), checks.integer("m", n if m is None else m, least=1)
        paired = checks.boolean("pairs", pairs)
        result = backends.choose_for(n, m, dim, dtype, device_type, requested, paired=paired)
        module = backends.module_of(result.backend, device_type)
        regime, why_regime = module.regime(n, m, dim, dtype, checks.integer("problems", problems, least=1))
        return Choice(op, regime, device_type, result.backend, f"{result.reason}; {regime}: {why_regime}")
    if op == "ot_matrix":
        if n is None:
            return matrix.choose(device_type, dtype, requested)
        n, m = checks.integer("n", n, least=1), checks.integer("m", n if m is None else m, least=1)
        solve = matrix.Sizes(checks.integer("problems", problems, least=1), n, m, own=False)
        return matrix.choose(device_type, dtype, requested, solve)
    if op == "batch":
        return contrast.choose(device_type, (dtype,), checks.integer("batch", batch, least=1), requested)
    if op not in dispatch.BANK_SCORES:
        return dispatch.resolve(op, device=device_type, backend=requested)
    checks.choice("plan", plan, ("auto", *PLANS))
    if plan == "auto" and (num_data is None or k is None):
        raise ValueError(f"explain({op!r}) with plan='auto' needs num_data and k, got num_data={num_data}, k={k}")
    sizes = (1, ALL) if plan != "auto" else (checks.integer("num_data", num_data, least=1), _draws(k))
    result = choose(op, plan, Problem(checks.integer("batch", batch, least=1), *sizes, dim), device_type, requested)
    if op == "bank_mean_score" and plan == "auto" and k == "all":
        return replace(result, reason=f"{result.reason}; for a MemoryBank outside torch.compile: {FROM_SUMS}")
    return result


def _draws(k: int | str | None) -> int:
    return ALL if k == "all" else checks.integer("k", k, least=1)
