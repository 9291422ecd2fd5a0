"""The bank ops as `torch.library` ops: value checks, plan and backend, then one implementation.

Schemas take S stacked directions: anchors [S, B, D] against S banks [N, D] with one shared set of draws.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks, dispatch, library
from ..sampling.spec import DrawSpec
from ..status import Code
from . import native, reference
from .plan import choose

# How a DrawSpec travels through a schema, and what follows it in every op.
_SPEC = "Tensor[] tables, str source, SymInt k, str replacement, bool expected, SymInt anchor_offset"
_NCE_FWD = {"reference": reference.bank_nce}
_MEAN_SCORE_FWD = {"reference": reference.bank_mean_score}
_LOG_Z = {"reference": reference.bank_log_z}
_UPDATE = {"reference": reference.bank_update_, "native": native.bank_update_}


def _select(op: str, banks: list[Tensor], spec: DrawSpec, plan: str, backend: str) -> tuple[str, str, str]:
    """(plan, backend, backend of the draws) for one call."""
    device = banks[0].device.type
    asked = dispatch.requested(backend)
    plan, _ = choose(plan, banks[0].shape[0], spec, "reference" if asked == "auto" else asked, device)
    chosen = dispatch.resolve(op, plan=plan, device=device, backend=asked).backend
    return plan, chosen, asked  # an explicit backend draws for itself, `auto` draws by the fastest


def _checked(anchors: Tensor, banks: list[Tensor], index: Tensor, spec: DrawSpec) -> tuple[Tensor, DrawSpec, Tensor]:
    """(index, spec) that are safe to read with, and bool [S, B]: True where the anchor's result is valid."""
    num_data = banks[0].shape[0]
    ok = checks.rows_in_range("index", index, num_data)
    index = torch.where(ok, index, 0).long()
    if spec.source == "given":
        inside = checks.rows_in_range("negatives", spec.table("indices"), num_data)
        ok = ok & inside.all(1)
        spec = DrawSpec("given", spec.k, "no", False, 0, [torch.where(inside, spec.table("indices"), 0)])
    return index, spec, ok & checks.finite_rows("anchor", anchors, Code.ANCHOR)


def _finish(ok: Tensor, value: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """NaN for an anchor that was flagged on a device (on the CPU it has already raised)."""
    if ok.device.type == "cpu":
        return value, grad
    value = torch.where(ok, value, torch.nan)
    return value, (torch.where(ok[..., None], grad, torch.nan) if grad.numel() else grad)


def _nce(
    anchors,
    banks,
    index,
    log_z,
    tables,
    source,
    k,
    replacement,
    expected,
    anchor_offset,
    temperature,
    needs_grad,
    plan,
    backend,
):
    spec = DrawSpec(source, k, replacement, expected, anchor_offset, tables)
    index, spec, ok = _checked(anchors, banks, index, spec)
    plan, chosen, draw_backend = _select("bank_nce", banks, spec, plan, backend)
    return _finish(
        ok, *_NCE_FWD[chosen](anchors, banks, index, log_z, spec, temperature, needs_grad, plan, draw_backend)
    )


def _mean_score(
    anchors, banks, index, tables, source, k, replacement, expected, anchor_offset, needs_grad, plan, backend
):
    spec = DrawSpec(source, k, replacement, expected, anchor_offset, tables)
    index, spec, ok = _checked(anchors, banks, index, spec)
    plan, chosen, draw_backend = _select("bank_mean_score", banks, spec, plan, backend)
    return _finish(ok, *_MEAN_SCORE_FWD[chosen](anchors, banks, index, spec, needs_grad, plan, draw_backend))


def _log_z(
    log_z,
    anchors,
    banks,
    index,
    tables,
    source,
    k,
    replacement,
    expected,
    anchor_offset,
    temperature,
    plan,
    backend,
):
    unset = torch.isnan(log_z)
    if log_z.device.type == "cpu" and not bool(unset.any()):
        return log_z.clone()
    spec = DrawSpec(source, k, replacement, expected, anchor_offset, tables)
    index, spec, _ = _checked(anchors, banks, index, spec)
    plan, chosen, draw_backend = _select("bank_log_z", banks, spec, plan, backend)
    estimate = _LOG_Z[chosen](anchors, banks, index, spec, temperature, plan, draw_backend)
    return torch.where(unset, estimate.to(log_z.dtype), log_z)


def _update_(bank, index, rows, momentum, backend):
    ok = checks.rows_in_range("index", index, bank.shape[0])
    ok = ok & checks.finite_rows("rows", rows, Code.UPDATE_ROW)
    chosen = dispatch.resolve("bank_update", device=bank.device, backend=backend).backend
    if chosen == "reference" and bank.device.type != "cpu":  # the kernels skip a bad row themselves
        keep = ok & reference.last_of_each(index)
        index, rows = index[keep], rows[keep]
    _UPDATE[chosen](bank, index.contiguous(), rows.contiguous(), momentum)


def _per_anchor_fake(anchors, *rest):
    needs_grad = rest[-3]
    acc = reference.accumulate_dtype(anchors, *rest[0])
    value = anchors.new_empty(anchors.shape[:2], dtype=acc)
    return value, anchors.new_empty(anchors.shape if needs_grad else (0,), dtype=acc)


nce_op = library.register(
    f"bank_nce(Tensor anchors, Tensor[] banks, Tensor index, Tensor log_z, {_SPEC}, float temperature, "
    "bool needs_grad, str plan, str backend) -> (Tensor, Tensor)",
    _nce,
    _per_anchor_fake,
)
mean_score_op = library.register(
    f"bank_mean_score(Tensor anchors, Tensor[] banks, Tensor index, {_SPEC}, bool needs_grad, str plan, str backend) "
    "-> (Tensor, Tensor)",
    _mean_score,
    _per_anchor_fake,
)
log_z_op = library.register(
    f"bank_log_z(Tensor log_z, Tensor anchors, Tensor[] banks, Tensor index, {_SPEC}, float temperature, str plan, "
    "str backend) -> Tensor",
    _log_z,
    lambda log_z, *rest: torch.empty_like(log_z),
)
update_op = library.register(
    "bank_update_(Tensor(a!) bank, Tensor index, Tensor rows, float momentum, str backend) -> ()",
    _update_,
    lambda *args: None,
)
