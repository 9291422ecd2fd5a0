"""Why a call runs the way it does."""

from __future__ import annotations

import torch

from .ops import checks, dispatch
from .ops.bank.plan import PLANS, choose
from .ops.dispatch import Choice
from .ops.sampling.spec import ALL, DrawSpec
from .ops.sinkhorn import backends

BANK_OPS = ("bank_nce", "bank_mean_score", "bank_log_z")


def explain(
    op: str,
    *,
    num_data: int | None = None,
    k: int | str | None = None,
    n: int | None = None,
    m: int | None = None,
    dim: int | None = None,
    problems: int = 1,
    dtype: torch.dtype = torch.float32,
    plan: str = "auto",
    backend: str = "auto",
    device: torch.device | str = "cpu",
) -> Choice:
    """Which plan and backend a call of `op` takes in this process, and why.

    Args:
        op: "bank_nce", "bank_mean_score", "bank_log_z", "bank_update", "bank_init", "draw" or "ot".
        num_data, k: N and K ("all" for the whole pool) of a bank op with plan="auto".
        n, m, dim, problems, dtype: shape [problems, n, dim] against [problems, m, dim] and dtype of the features of
            "ot": with n, m and dim given, the answer says in which regime (resident, streaming, ...) it is solved.
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
        found = dispatch.resolve(op, device=kind, backend=asked)
        if op != "ot" or None in (n, m, dim):
            return found
        sizes = [
            checks.integer(name, value, least=1)
            for name, value in (("n", n), ("m", m), ("dim", dim), ("problems", problems))
        ]
        regime, why = backends.module_of(found.backend, kind).regime(*sizes[:3], dtype, sizes[3])
        return Choice(op, regime, kind, found.backend, f"{found.reason}; {regime}: {why}")
    checks.choice("plan", plan, ("auto", *PLANS))
    if plan == "auto" and (num_data is None or k is None):
        raise ValueError(f"explain({op!r}) with plan='auto' needs num_data and k, got num_data={num_data}, k={k}")
    why = "asked for"
    if plan == "auto":
        draws = ALL if k == "all" else checks.integer("k", k, least=1)
        spec = DrawSpec("none", draws, "no", False, 0, [])
        plan, why = choose(plan, checks.integer("num_data", num_data, least=1), spec, "reference", kind)
    found = dispatch.resolve(op, plan=plan, device=kind, backend=asked)
    return Choice(op, plan, kind, found.backend, f"{found.reason}; plan {plan}: {why}")
