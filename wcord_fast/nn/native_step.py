"""When a loss's forward can be one native call on the CPU (ops/bank/contrast_step.py), and what that call is given.

Everything here is read anew from the module in every call, so nothing can be stale: what is not exactly as the native
code takes it returns None, and the loss goes the long way, which says what is wrong, or does what others asked for
(hooks, a process group, autocast, another backend, a tracer).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from ..distributed.ranks import ranks
from ..ops import checks, dispatch, native_module
from ..ops.bank.contrast_step import ContrastStep, Step, Unfit
from ..ops.bank.directions import given
from ..ops.bank.plan import Problem, chosen
from ..ops.eager import PLAIN, eager
from ..ops.sampling.spec import ALL
from ..ops.spectral import Spectral
from .embed import Embed
from .linear import CriticLinear
from .memory_bank import MemoryBank
from .sampler import NegativeSampler

if TYPE_CHECKING:
    from .contrast import Contrast, ContrastiveLoss

LEAST_LENGTH = {"sphere": 1e-12, "ball": 1.0}
_NATIVE = ("auto", "native")
_FORWARD = frozenset({"forward", "value_and_gradient"})
_METHODS = frozenset({"advance", "spec", "update_", "held", "finish_step", "nce"})  # that the native step stands for
_CONTRAST = f"{__package__}.contrast"

LocalTerm = Callable[[Tensor, Tensor, bool], tuple[float, Tensor | None]]


def native_step(
    loss: ContrastiveLoss,
    f_s: Tensor,
    f_t: Tensor,
    idx: Tensor,
    contrast_idx: Tensor | None,
    factor: float = 1.0,
    local: LocalTerm | None = None,
) -> tuple[Tensor, float] | None:
    """(the loss, the unweighted NCE), after the banks and the step have moved in training; None: not this way.

    Args:
        factor: weight of the NCE loss.
        local: another term, see `Step`.
    """
    contrast = loss.contrast
    if contrast is None or not (eager() and not _has_any_global_hook() and _fits(loss, f_s, f_t, idx)):
        return None
    if not loss._filled:
        loss.require_filled()
    step = _step(contrast, loss, idx, contrast_idx)
    if step is None:
        return None
    linears = loss.embed_s.linear, loss.embed_t.linear
    moved = [_spectral(linear) for linear in linears]
    if any(s is not None and not 0 < s.sigma < float("inf") for s in moved):
        return None
    step.factor, step.spectral, step.local = factor, (moved[0], moved[1]), local
    step.records = torch.is_grad_enabled()
    parameters = [p for linear in linears for p in (linear.weight, linear.bias)]
    try:
        if torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                total, _ = ContrastStep.apply(f_s, f_t, *parameters, step)
        else:
            total, _ = ContrastStep.apply(f_s, f_t, *parameters, step)
    except Unfit:
        return None
    if loss.training:
        if not step.finish(contrast.sampler.state):
            return None
        for linear, spectral in zip(linears, moved, strict=True):
            if spectral is not None and linear.training:
                linear.keep(spectral)
    return total, step.nce


def _fits(loss: ContrastiveLoss, f_s: Tensor, f_t: Tensor, idx: Tensor) -> bool:
    """Whether tensors and maps are plain ones on the CPU, of shapes that fit."""
    if type(f_s) not in PLAIN or type(f_t) not in PLAIN or type(idx) not in PLAIN:
        return False
    batch = idx.shape[0] if idx.dim() == 1 and idx.dtype in (torch.int64, torch.int32) and idx.is_cpu else 0
    dtype = loss.embed_s.linear.weight.dtype
    for f, embed in ((f_s, loss.embed_s), (f_t, loss.embed_t)):
        if not (f.is_cpu and f.layout is torch.strided and f.is_floating_point() and not f.is_nested):
            return False
        if f.dim() < 2 or f.shape[0] != batch or batch == 0 or f.numel() != batch * embed.in_dim:
            return False
        linear = embed.linear
        if type(embed) is not Embed or type(linear) is not CriticLinear or touched(embed) or touched(linear):
            return False
        for p in (linear.weight, linear.bias):
            if type(p) not in PLAIN or p.dtype is not dtype or not p.is_cpu:
                return False
    return dtype in (torch.float32, torch.float64) and loss.embed_s.norm == loss.embed_t.norm


def touched(module: nn.Module, methods: frozenset[str] = _FORWARD) -> bool:
    """Whether a module has hooks, or a method of its own in place of its class's."""
    own = module.__dict__
    hooks = own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]
    return bool(hooks) or not own.keys().isdisjoint(methods)


def _is_ours(contrast: Contrast) -> bool:
    """Whether banks, sampler and what joins them are of the classes whose steps the native code takes, as they are."""
    sampler, student, teacher = contrast.sampler, contrast.memory_v1, contrast.memory_v2
    ours = type(sampler) is NegativeSampler and type(student) is type(teacher) is MemoryBank
    own = type(contrast).__module__ == _CONTRAST and not touched(contrast, _METHODS)
    return own and ours and not (touched(sampler, _METHODS) or touched(student, _METHODS) or touched(teacher, _METHODS))


def _step(contrast: Contrast, loss: ContrastiveLoss, idx: Tensor, contrast_idx: Tensor | None) -> Step | None:
    if contrast.z != "first" or not _is_ours(contrast) or contrast.sharded or ranks().world > 1:
        return None
    asked = dispatch.requested(contrast.backend)
    updates = asked if contrast.backend == "auto" else dispatch.requested()
    if asked not in _NATIVE or updates not in _NATIVE or native_module.why_not("cpu") is not None:
        return None
    for memory in (contrast.memory_v1, contrast.memory_v2):
        memory.require_filled()
    banks = contrast.memory_v2.rows, contrast.memory_v1.rows
    wide, shape = loss.embed_s.linear.weight.dtype is torch.float64, (contrast.sampler.num_data, loss.embed_s.width)
    if contrast.memory_v1.momentum != contrast.memory_v2.momentum or loss.embed_t.width != shape[1]:
        return None
    for memory, rows in ((contrast.memory_v2, banks[0]), (contrast.memory_v1, banks[1])):
        if memory._sums is not None or type(rows) not in PLAIN or rows.shape != shape:
            return None
        if not rows.is_cpu or not rows.is_contiguous():
            return None
        if rows.requires_grad or rows.is_neg() or (rows.dtype is torch.float64 and not wide):
            return None
    log_z = contrast.log_z.tolist()
    if any(z != z for z in log_z):  # to be estimated first
        return None
    num_data, dim = banks[0].shape
    if contrast_idx is None:
        positive, spec = idx, contrast.sampler.spec()
        for table in spec.tables:
            if not (table.is_cpu and table.is_contiguous()):
                return None
    else:
        if type(contrast_idx) not in PLAIN or not contrast_idx.is_cpu or contrast_idx.dim() != 2:
            return None
        if contrast_idx.shape[0] != len(idx) or contrast_idx.shape[1] < 2 or contrast_idx.dtype not in checks.INDICES:
            return None
        positive, spec = contrast_idx[:, 0].contiguous(), given(contrast_idx[:, 1:])
    k = ALL if spec.whole_pool else spec.k
    found = chosen("bank_nce", contrast.plan, Problem(len(idx), num_data, k, dim), "cpu", asked)
    if found.backend != "native":
        return None
    return Step(
        banks=banks,
        positive=positive.contiguous(),
        index=idx.contiguous(),
        spec=spec,
        log_z=log_z,
        temperature=contrast.temperature,
        least_length=LEAST_LENGTH[loss.embed_s.norm],
        momentum=contrast.memory_v1.momentum,
        plan=found.plan,
    )


def _spectral(linear: CriticLinear) -> Spectral | None:
    """Of the weight as it is; in training after one more iteration, which the caller writes once it is sure."""
    return linear.leading() if linear.spectral else None
