"""Decides whether a loss's forward goes straight to native code (ops/bank/contrast_step.py, contrast_step_cuda.py).

Every call reads everything from the module again, so nothing can be stale. Where the native code does not support the
call exactly, the result is None, and the loss takes the ordinary path, which raises the errors and supports hooks,
process groups, autocast, other backends and tracers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from ..distributed.ranks import ranks
from ..ops import checks, dispatch, native_module
from ..ops.bank.contrast_step import ContrastStep, Step, Unfit
from ..ops.bank.contrast_step_cuda import MOST_DIM, DeviceNorms, DeviceStep
from ..ops.bank.directions import given
from ..ops.bank.plan import Problem, chosen
from ..ops.eager import PLAIN, eager
from ..ops.sampling.spec import ALL, DrawSpec
from .embed import Embed
from .linear import TINY, CriticLinear
from .memory_bank import MemoryBank
from .sampler import NegativeSampler

if TYPE_CHECKING:
    from .contrast import Contrast, ContrastiveLoss

LEAST_LENGTH = {"sphere": 1e-12, "ball": 1.0}
_NATIVE = ("auto", "native")
_FORWARD = frozenset({"forward", "value_and_gradient"})
_METHODS = frozenset(
    {"advance", "spec", "update_", "held", "finish_step", "nce"}
)  # methods that the native step replaces
_CONTRAST = f"{__package__}.contrast"

LocalTerm = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]


def native_step(
    loss: ContrastiveLoss,
    f_s: Tensor,
    f_t: Tensor,
    idx: Tensor,
    contrast_idx: Tensor | None,
    factor: float = 1.0,
    local: LocalTerm | None = None,
    local_factor: float = 0.0,
    ramp: Tensor | None = None,
) -> tuple[Tensor, Tensor] | None:
    """The loss and the unweighted terms [-NCE, local term]; None if the native code does not support the call.

    Args:
        factor: weight of the NCE loss.
        local: computes the unweighted local term, see `Step`.
        local_factor: weight of the local term.
        ramp: [2] factors of both weights, or None.
    """
    if not eager() or _has_any_global_hook():
        return None
    parts = _parts(loss)
    if parts is None or not _fits(parts, f_s, f_t, idx):
        return None
    if not loss._filled:
        loss.require_filled()
    if not _is_ours(parts) or ranks().world > 1:
        return None
    make = _host_step if f_s.is_cpu else _device_step
    step = make(parts, idx, contrast_idx, factor, ramp)
    if step is None:
        return None
    step.local, step.records = local, torch.is_grad_enabled()
    step.local_factor = local_factor if ramp is None or isinstance(step, DeviceStep) else local_factor * float(ramp[1])
    parameters = (parts.weights[0], parts.biases[0], parts.weights[1], parts.biases[1])
    try:
        if torch.is_autocast_enabled(f_s.device.type):
            with torch.autocast(f_s.device.type, enabled=False):
                total, _ = ContrastStep.apply(f_s, f_t, *parameters, step)
        else:
            total, _ = ContrastStep.apply(f_s, f_t, *parameters, step)
    except Unfit:
        return None
    if parts.training and isinstance(step, Step):
        if not step.finish(parts.sampler.state):
            return None
        for linear, spectral in zip(parts.linears, step.spectral, strict=True):
            if spectral is not None and linear.training:
                linear.keep(spectral)
    assert step.terms is not None
    return total, step.terms


class Parts(NamedTuple):
    """What a step reads of a loss, each found once, because `nn.Module` finds its attributes slowly.

    Pairs are (student, teacher).
    """

    training: bool
    contrast: Contrast
    sampler: NegativeSampler
    memories: tuple[MemoryBank, MemoryBank]
    rows: tuple[Tensor, Tensor]
    embeds: tuple[Embed, Embed]
    linears: tuple[CriticLinear, CriticLinear]
    weights: tuple[Tensor, Tensor]
    biases: tuple[Tensor, Tensor]


def _parts(loss: ContrastiveLoss) -> Parts | None:
    """The parts of a loss, if its maps, banks and sampler are the classes that the native code implements."""
    contrast = loss.contrast
    if contrast is None or type(contrast).__module__ != _CONTRAST:
        return None
    embed_s, embed_t = loss.embed_s, loss.embed_t
    if not type(embed_s) is type(embed_t) is Embed:
        return None
    linear_s, linear_t = embed_s.linear, embed_t.linear
    sampler, student, teacher = contrast.sampler, contrast.memory_v1, contrast.memory_v2
    if not (type(linear_s) is type(linear_t) is CriticLinear and type(sampler) is NegativeSampler):
        return None
    if not type(student) is type(teacher) is MemoryBank or student._sums is not None or teacher._sums is not None:
        return None
    return Parts(
        training=loss.training,
        contrast=contrast,
        sampler=sampler,
        memories=(student, teacher),
        rows=(student.rows, teacher.rows),
        embeds=(embed_s, embed_t),
        linears=(linear_s, linear_t),
        weights=(linear_s.weight, linear_t.weight),
        biases=(linear_s.bias, linear_t.bias),
    )


def _fits(parts: Parts, f_s: Tensor, f_t: Tensor, idx: Tensor) -> bool:
    """Whether tensors and maps are plain, on one CPU or CUDA device, and of matching shapes."""
    if type(f_s) not in PLAIN or type(f_t) not in PLAIN or type(idx) not in PLAIN:
        return False
    device = f_s.device
    if device.type not in ("cpu", "cuda") or idx.device != device:
        return False
    batch = idx.shape[0] if idx.dim() == 1 and idx.dtype in (torch.int64, torch.int32) else 0
    dtype = parts.weights[0].dtype
    for f, embed, linear in zip((f_s, f_t), parts.embeds, parts.linears, strict=True):
        if not (f.device == device and f.layout is torch.strided and f.is_floating_point() and not f.is_nested):
            return False
        if f.dim() < 2 or f.shape[0] != batch or batch == 0 or f.numel() != batch * embed.in_dim:
            return False
        if is_customised(embed) or is_customised(linear):
            return False
    for p in (*parts.weights, *parts.biases):
        if type(p) not in PLAIN or p.dtype is not dtype or p.device != device:
            return False
    return dtype in (torch.float32, torch.float64) and parts.embeds[0].norm == parts.embeds[1].norm


def is_customised(module: nn.Module, methods: frozenset[str] = _FORWARD) -> bool:
    """Whether a module has hooks, or an instance attribute in place of a method of its class."""
    names = module.__dict__
    forward_hooks = names["_forward_hooks"] or names["_forward_pre_hooks"]
    return bool(
        forward_hooks or names["_backward_hooks"] or names["_backward_pre_hooks"]
    ) or not names.keys().isdisjoint(methods)


def _is_ours(parts: Parts) -> bool:
    """Whether contrast, banks and sampler are unchanged, unsharded, and fit the maps."""
    student, teacher = parts.memories
    if any(is_customised(module, _METHODS) for module in (parts.contrast, parts.sampler, student, teacher)):
        return False
    weight, width = parts.weights[0], parts.embeds[0].width
    shape = (parts.sampler.num_data, width)
    if student.momentum != teacher.momentum or parts.embeds[1].width != width or parts.contrast.sharded:
        return False
    for memory, rows in zip(parts.memories, parts.rows, strict=True):
        memory.require_filled()
        if type(rows) not in PLAIN or rows.shape != shape:
            return False
        if rows.device != weight.device or not rows.is_contiguous() or rows.requires_grad or rows.is_neg():
            return False
        if rows.dtype is torch.float64 and weight.dtype is not torch.float64:
            return False
    return True


def _backend(contrast: Contrast, allowed: tuple[str, ...]) -> str | None:
    """The requested backend, if it and the backend of the updates are allowed."""
    requested = dispatch.requested(contrast.backend)
    updates = requested if contrast.backend == "auto" else dispatch.requested()
    return requested if requested in allowed and updates in _NATIVE else None


def _negatives(sampler: NegativeSampler, idx: Tensor, contrast_idx: Tensor | None) -> tuple[Tensor, DrawSpec] | None:
    """(rows of the positives, the negatives), if they are plain tensors on idx's device."""
    if contrast_idx is None:
        spec = sampler.spec()
        return (idx, spec) if all(t.device == idx.device and t.is_contiguous() for t in spec.tables) else None
    if type(contrast_idx) not in PLAIN or contrast_idx.device != idx.device or contrast_idx.dim() != 2:
        return None
    if contrast_idx.shape[0] != len(idx) or contrast_idx.shape[1] < 2 or contrast_idx.dtype not in checks.INDICES:
        return None
    return contrast_idx[:, 0].contiguous(), given(contrast_idx[:, 1:])


def _host_step(
    parts: Parts,
    idx: Tensor,
    contrast_idx: Tensor | None,
    factor: float,
    ramp: Tensor | None,
) -> Step | None:
    contrast = parts.contrast
    requested = _backend(contrast, _NATIVE)
    if contrast.z != "first" or requested is None or native_module.unavailable_reason("cpu") is not None:
        return None
    log_z = contrast.log_z.tolist()
    if any(z != z for z in log_z):  # must be estimated first
        return None
    negatives = _negatives(parts.sampler, idx, contrast_idx)
    if negatives is None:
        return None
    positive, spec = negatives
    banks = parts.rows[1], parts.rows[0]
    num_data, dim = banks[0].shape
    k = ALL if spec.whole_pool else spec.k
    result = chosen("bank_nce", contrast.plan, Problem(len(idx), num_data, k, dim), "cpu", requested)
    if result.backend != "native":
        return None
    spectral = tuple(linear.leading() if linear.spectral else None for linear in parts.linears)
    if any(s is not None and not 0 < s.sigma < float("inf") for s in spectral):
        return None
    return Step(
        banks=banks,
        positive=positive.contiguous(),
        index=idx.contiguous(),
        spec=spec,
        log_z=log_z,
        temperature=contrast.temperature,
        least_length=LEAST_LENGTH[parts.embeds[0].norm],
        momentum=parts.memories[0].momentum,
        plan=result.plan,
        factor=factor if ramp is None else factor * float(ramp[0]),
        spectral=(spectral[0], spectral[1]),
    )


def _device_step(
    parts: Parts,
    idx: Tensor,
    contrast_idx: Tensor | None,
    factor: float,
    ramp: Tensor | None,
) -> DeviceStep | None:
    contrast, linears = parts.contrast, parts.linears
    if _backend(contrast, (*_NATIVE, "triton")) is None or native_module.unavailable_reason("cuda") is not None:
        return None
    student, teacher = parts.rows
    if student.dtype is not teacher.dtype or linears[0].spectral != linears[1].spectral:
        return None
    if linears[0].training != linears[1].training or parts.embeds[0].width > MOST_DIM:
        return None
    if _negatives(parts.sampler, idx, contrast_idx) is None:
        return None
    norms = None
    if linears[0].spectral:
        dtype = parts.weights[0].dtype
        weights = (parts.weights[0].detach().contiguous(), parts.weights[1].detach().contiguous())
        vectors = [(linear.u, linear.v) for linear in linears]
        if any(t.dtype is not dtype or t.device != idx.device or not t.is_contiguous() for p in vectors for t in p):
            return None
        for linear in linears:
            linear.require_filled()
        norms = partial(DeviceNorms, weights, vectors, linears[0].training, TINY)

    def score(anchors: Tensor, needs_grad: bool) -> tuple[Tensor, Tensor]:
        return contrast.losses_and_gradient(anchors, idx, contrast_idx, needs_grad)

    return DeviceStep(
        score_anchors=score,
        index=idx.contiguous(),
        banks=(student, teacher) if parts.training else None,
        state=parts.sampler.state,
        least_length=LEAST_LENGTH[parts.embeds[0].norm],
        momentum=parts.memories[0].momentum,
        factor=factor,
        norms=norms,
        ramp=ramp,
    )
