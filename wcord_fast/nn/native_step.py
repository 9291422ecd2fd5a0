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
from ..ops import dispatch, native_module
from ..ops.bank.contrast_step import ContrastStep, Step, Unfit
from ..ops.bank.directions import given
from ..ops.bank.plan import Problem, chosen
from ..ops.eager import PLAIN, eager
from ..ops.sampling.spec import ALL
from ..ops.spectral import Spectral
from .embed import Embed
from .linear import CriticLinear

if TYPE_CHECKING:
    from .contrast import Contrast, ContrastiveLoss

LEAST_LENGTH = {"sphere": 1e-12, "ball": 1.0}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_NATIVE = ("auto", "native")

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
    parameters = [p for linear in linears for p in (linear.weight, linear.bias)]
    try:
        if torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                total = ContrastStep.apply(f_s, f_t, *parameters, step)
        else:
            total = ContrastStep.apply(f_s, f_t, *parameters, step)
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
        if type(embed) is not Embed or type(linear) is not CriticLinear or _touched(embed) or _touched(linear):
            return False
        for p in (linear.weight, linear.bias):
            if type(p) not in PLAIN or p.dtype is not dtype or not p.is_cpu:
                return False
    return dtype in (torch.float32, torch.float64)


def _touched(module: nn.Module) -> bool:
    own = module.__dict__
    return any(own[name] for name in _HOOKS) or "forward" in own


def _step(contrast: Contrast, loss: ContrastiveLoss, idx: Tensor, contrast_idx: Tensor | None) -> Step | None:
    if contrast.z != "first" or contrast.sharded or ranks().world > 1:
        return None
    asked = dispatch.requested(contrast.backend)
    updates = asked if contrast.backend == "auto" else dispatch.requested()
    if asked not in _NATIVE or updates not in _NATIVE or native_module.why_not("cpu") is not None:
        return None
    banks = contrast.memory_v2.rows, contrast.memory_v1.rows
    wide = loss.embed_s.linear.weight.dtype is torch.float64
    for memory, rows in ((contrast.memory_v2, banks[0]), (contrast.memory_v1, banks[1])):
        if memory._sums is not None or type(rows) not in PLAIN or not rows.is_cpu or not rows.is_contiguous():
            return None
        if rows.requires_grad or rows.is_neg() or (rows.dtype is torch.float64 and not wide):
            return None
    log_z = contrast.log_z.tolist()
    if any(z != z for z in log_z):  # to be estimated first
        return None
    num_data, dim = banks[0].shape
    if contrast_idx is None:
        positive, spec = idx, contrast.sampler.spec()
        if spec.tables[0].device.type != "cpu":
            return None
    else:
        if type(contrast_idx) not in PLAIN or not contrast_idx.is_cpu or contrast_idx.dim() != 2:
            return None
        if contrast_idx.shape[0] != len(idx) or contrast_idx.shape[1] < 2 or contrast_idx.is_floating_point():
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
