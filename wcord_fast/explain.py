"""Why a call runs the way it does."""

from __future__ import annotations

import torch

from .ops import checks, dispatch
from .ops.bank.plan import PLANS, Problem, choose
from .ops.dispatch import Choice
from .ops.sampling.spec import ALL

BANK_OPS = ("bank_nce", "bank_mean_score", "bank_log_z")


def explain(
    op: str,
    *,
    num_data: int | None = None,
    k: int | str | None = None,
    batch: int = 64,
    dim: int = 128,
    plan: str = "auto",
    backend: str = "auto",
    device: torch.device | str = "cpu",
) -> Choice:
    """Which plan and backend a call of `op` takes in this process, and why.

    Args:
        op: "bank_nce", "bank_mean_score", "bank_log_z", "bank_update", "bank_init", "draw" or "ot".
        num_data, k: N and K ("all" for the whole pool, also with expected=True) of a bank op with plan="auto".
        batch, dim: B and D of such a call.
        plan, backend: as in the call.
        device: the device of the tensors.
    Returns:
        A record with `plan`, `backend` and `reason`; `str()` of it is one line.
    Raises:
        NotImplementedError: no such row in the support table, which is what the call would raise too.
    """
    checks.choice("op", op, dispatch.OPS)
    kind = torch.device(device).type
    asked = dispatch.requested(backend)
    if op not in BANK_OPS:
        return dispatch.resolve(op, device=kind, backend=asked)
    checks.choice("plan", plan, ("auto", *PLANS))
    if plan == "auto" and (num_data is None or k is None):
        raise ValueError(f"explain({op!r}) with plan='auto' needs num_data and k, got num_data={num_data}, k={k}")
    sizes = (1, ALL) if plan != "auto" else (checks.integer("num_data", num_data, least=1), _draws(k))
    problem = Problem(checks.integer("batch", batch, least=1), *sizes, checks.integer("dim", dim, least=1))
    return choose(op, plan, problem, kind, asked)


def _draws(k: int | str | None) -> int:
    return ALL if k == "all" else checks.integer("k", k, least=1)
