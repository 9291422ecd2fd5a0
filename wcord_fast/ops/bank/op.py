"""The bank ops as `torch.library` ops: value checks, plan and backend, then one implementation.

Schemas take S stacked directions: anchors [S, B, D] against S banks [N, D] with one shared set of draws.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import checks, dispatch, library
from ..sampling.spec import ALL, DrawSpec
from ..status import Code
from . import native, native_cpu, native_cuda, reference, triton, triton_launch
from .part import Part, whole
from .plan import Problem, choose, chosen

# The fields of a DrawSpec in a schema, and the arguments that follow them in every op.
SPEC = "Tensor[] tables, str source, SymInt k, str replacement, bool expected, SymInt anchor_offset"

# (backend, plan, kind of device) -> the module whose function of the op's name runs; the support table in dispatch.py
# says which ops it has.
_MODULES: dict[tuple[str, str, str], Any] = {
    ("native", "gather", "cpu"): native_cpu,
    ("native", "gather", "cuda"): native_cuda,
    ("native", "dense", "cpu"): native_cpu,
    ("triton", "dense", "cuda"): triton,
    ("triton", "dense", "cpu"): triton,  # interpreted, in tests
    ("reference", "gather", "any"): reference,
    ("reference", "dense", "any"): reference,
}
_UPDATE = {"reference": reference.bank_update_, "native": native.bank_update_}


_SKIP_KNOWN = (native_cuda, triton)  # modules that skip a log Z that is set


def select(
    op: str, anchors: Tensor, banks: list[Tensor], spec: DrawSpec, plan: str, backend: str, part: Part | None = None
) -> tuple:
    """(module, plan, backend of the draws) for one call. `part`: the rows that the banks hold of longer ones."""
    part, height = part or whole(banks), banks[0].shape[0]

    def unfit(candidate: str, name: str) -> str | None:
        return triton_launch.unavailable_reason(anchors, banks, part) if candidate == "triton" else None

    device = banks[0].device.type
    requested = dispatch.requested(backend)
    k = ALL if spec.whole_pool else max(1, round(spec.k * height / part.num_data))  # draws that the banks hold
    problem = Problem(anchors.shape[1], height, k, anchors.shape[2])
    if device == "cpu":
        result = chosen(op, plan, problem, device, requested)
    else:
        result = choose(op, plan, problem, device, requested, unfit)
    module = _MODULES.get((result.backend, result.plan, device)) or _MODULES[result.backend, result.plan, "any"]
    return module, result.plan, requested  # an explicit backend also draws; `auto` draws by the fastest


def checked(anchors: Tensor, num_data: int, index: Tensor, spec: DrawSpec) -> tuple[Tensor, DrawSpec, Tensor]:
    """(index, spec) whose rows are safe to read, and bool [S, B]: True where the anchor's result is valid."""
    ok = checks.rows_in_range("index", index, num_data)
    index = torch.where(ok, index, 0).long()
    if spec.source == "given" and not _all_inside(spec.table("indices"), num_data):
        inside = checks.rows_in_range("negatives", spec.table("indices"), num_data)
        ok = ok & inside.all(1)
        spec = DrawSpec("given", spec.k, "no", False, 0, [torch.where(inside, spec.table("indices"), 0)])
    return index, spec, ok & checks.finite_rows("anchor", anchors, Code.ANCHOR)


def checks_itself(module: Any, anchors: Tensor, spec: DrawSpec) -> bool:
    """Whether the module checks all values: on the CPU it raises, on a device a flagged anchor's result is NaN."""
    if module is triton:  # its kernels do not see explicit rows, and cannot raise under the interpreter
        return spec.source != "given" and anchors.device.type != "cpu"
    return module in (native_cpu, native_cuda)


def _all_inside(rows: Tensor, num_data: int) -> bool:
    """On the CPU, whether every row number lies in [0, N), without a temporary of their size; elsewhere unknown."""
    if rows.device.type != "cpu" or rows.numel() == 0:
        return False
    low, high = torch.aminmax(rows)
    return int(low) >= 0 and int(high) < num_data


def _finish(ok: Tensor, value: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """NaN for an anchor that was flagged on a device (on the CPU it has already raised)."""
    if ok.device.type == "cpu":
        return value, grad
    value = torch.where(ok, value, torch.nan)
    return value, (torch.where(ok[..., None], grad, torch.nan) if grad.numel() else grad)


def nce(
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
    module, plan, drawer = select("bank_nce", anchors, banks, spec, plan, backend)
    if checks_itself(module, anchors, spec):
        return module.bank_nce(anchors, banks, index, log_z, spec, temperature, needs_grad, plan, drawer)
    index, spec, ok = checked(anchors, banks[0].shape[0], index, spec)
    return _finish(ok, *module.bank_nce(anchors, banks, index, log_z, spec, temperature, needs_grad, plan, drawer))


def mean_score(
    anchors, banks, index, tables, source, k, replacement, expected, anchor_offset, needs_grad, plan, backend
):
    spec = DrawSpec(source, k, replacement, expected, anchor_offset, tables)
    module, plan, drawer = select("bank_mean_score", anchors, banks, spec, plan, backend)
    if checks_itself(module, anchors, spec):
        return module.bank_mean_score(anchors, banks, index, spec, needs_grad, plan, drawer)
    index, spec, ok = checked(anchors, banks[0].shape[0], index, spec)
    return _finish(ok, *module.bank_mean_score(anchors, banks, index, spec, needs_grad, plan, drawer))


def log_z(
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
    module, plan, drawer = select("bank_log_z", anchors, banks, spec, plan, backend)
    known = {"known": log_z} if module in _SKIP_KNOWN else {}
    ok = None
    if not checks_itself(module, anchors, spec):
        index, spec, ok = checked(anchors, banks[0].shape[0], index, spec)
    estimate = module.bank_log_z(anchors, banks, index, spec, temperature, plan, drawer, **known)
    if ok is not None and ok.device.type != "cpu":  # so that Z is not frozen at an estimate from flagged rows
        estimate = torch.where(ok.all(1), estimate, torch.nan)
    return torch.where(unset, estimate.to(log_z.dtype), log_z)


def _update_(bank, index, rows, momentum, backend):
    chosen = dispatch.resolve("bank_update", device=bank.device, backend=backend).backend
    if chosen == "reference":  # the kernels check and, on CUDA, skip a bad row themselves
        ok = checks.rows_in_range("index", index, bank.shape[0])
        ok = ok & checks.finite_rows("rows", rows, Code.UPDATE_ROW)
        if bank.device.type != "cpu":
            keep = ok & reference.last_of_each(index)
            index, rows = index[keep], rows[keep]
    _UPDATE[chosen](bank, index.contiguous(), rows.contiguous(), momentum)


def _per_anchor_fake(anchors, *rest):
    needs_grad = rest[-3]
    acc = reference.accumulation_dtype(anchors, *rest[0])
    value = anchors.new_empty(anchors.shape[:2], dtype=acc)
    return value, anchors.new_empty(anchors.shape if needs_grad else (0,), dtype=acc)


nce_op = library.register(
    f"bank_nce(Tensor anchors, Tensor[] banks, Tensor index, Tensor log_z, {SPEC}, float temperature, "
    "bool needs_grad, str plan, str backend) -> (Tensor, Tensor)",
    nce,
    _per_anchor_fake,
)
mean_score_op = library.register(
    f"bank_mean_score(Tensor anchors, Tensor[] banks, Tensor index, {SPEC}, bool needs_grad, str plan, str backend) "
    "-> (Tensor, Tensor)",
    mean_score,
    _per_anchor_fake,
)
log_z_op = library.register(
    f"bank_log_z(Tensor log_z, Tensor anchors, Tensor[] banks, Tensor index, {SPEC}, float temperature, str plan, "
    "str backend) -> Tensor",
    log_z,
    lambda log_z, *rest: torch.empty_like(log_z),
)
update_op = library.register(
    "bank_update_(Tensor(a!) bank, Tensor index, Tensor rows, float momentum, str backend) -> ()",
    _update_,
    lambda *args: None,
)
