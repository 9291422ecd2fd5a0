"""The dense plan of the bank ops in Triton, for CUDA tensors: signatures and results of reference.py.

Three launches per chunk of anchors beside the draws, two for anchors in bf16 (triton_launch.py cuts a call into them;
the kernels are in triton_kernels.py and triton_anchor.py). No host sync, CUDA-graph capturable once compiled. triton
itself is imported at the first call.

`precision.matmul_precision()` decides how many bf16 terms stand for an fp32 factor: "highest" three (fp32
accuracy), "high" two, "medium" one (see triton_tiles.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .part import Part
from .reference import EPS
from .triton_launch import Call, Piece

_W_TERMS = 2  # of a sigmoid: the error, at most 2^-18 of each weight, is 4e-7 of a gradient (README.md)
_COUNT_TERMS = 2  # of a count: exact to 2^16, and 2^-18 of a larger one at most


def bank_nce(
    anchors, banks, index, log_z, spec, temperature, needs_grad, plan, draw_backend, part: Part | None = None
) -> tuple[Tensor, Tensor]:
    """CRD's NCE loss per anchor and its gradient: ([S, B], [S, B, D] or empty), fp32."""
    from . import triton_anchor, triton_kernels

    call = Call(anchors, banks, index, spec, plan, draw_backend, part)
    loss = call.empty()
    grad = call.empty(call.dim) if needs_grad else loss.new_empty(0)
    log_z = log_z.to(torch.float32).contiguous()
    for piece in call.pieces(by_column=needs_grad):
        shared = {
            "log_z_ptr": log_z[piece.directions],
            "temperature": temperature,
            "NEEDS_GRAD": needs_grad,
            "EPS": EPS,
        }
        loss_part = piece.scratch()
        grad_part = piece.scratch(call.dim) if needs_grad else grad
        piece.walk(
            triton_kernels.nce_fwd_kernel,
            terms_ptr=piece.terms(),
            loss_ptr=loss_part,
            grad_ptr=grad_part,
            W_TERMS=min(_W_TERMS, call.limit),
            **shared,
        )
        piece.finish(
            triton_anchor.nce_finish_kernel,
            loss_part_ptr=loss_part,
            grad_part_ptr=grad_part,
            **piece.output("loss", loss),
            **piece.output("grad", grad),
            **shared,
        )
    return loss, grad


def bank_mean_score(
    anchors, banks, index, spec, needs_grad, plan, draw_backend, part: Part | None = None
) -> tuple[Tensor, Tensor]:
    """Mean score of the negatives and its gradient, the mean negative row: ([S, B], [S, B, D] or empty), fp32."""
    from . import triton_anchor, triton_kernels

    call = Call(anchors, banks, index, spec, plan, draw_backend, part)
    mean = call.empty()
    grad = call.empty(call.dim) if needs_grad else mean.new_empty(0)
    for piece in call.pieces(by_column=True):
        grad_part = piece.scratch(call.dim)
        piece.walk(
            triton_kernels.mean_fwd_kernel,
            grad_ptr=grad_part,
            W_TERMS=min(_COUNT_TERMS, call.limit) if call.member == "counts" else 1,
        )
        piece.finish(
            triton_anchor.mean_finish_kernel,
            grad_part_ptr=grad_part,
            NEEDS_GRAD=needs_grad,
            **piece.output("mean", mean),
            **piece.output("grad", grad),
        )
    return mean, grad


def bank_infonce(
    anchors, banks, index, spec, temperature, needs_grad, plan, draw_backend, part: Part | None = None
) -> tuple[Tensor, Tensor]:
    """As `reference.bank_infonce`, in fp32; values are not checked."""
    call = Call(anchors, banks, index, spec, plan, draw_backend, part)
    log_sum = call.empty()
    mean = call.empty(call.dim) if needs_grad else log_sum.new_empty(0)
    scalars = log_sum.new_full((), 1 / temperature), log_sum.new_zeros(())
    for piece, top, total, rows in _walked(call, True, scalars, needs_grad):
        parts = top * math.log(2) + total.log()  # [splits, S, B]; -inf where a split has no negative
        log_sum[piece.directions, piece.anchors] = whole = parts.logsumexp(0)
        if needs_grad:
            factor = torch.where(total > 0, torch.exp(top * math.log(2) - whole), 0)
            mean[piece.directions, piece.anchors] = (rows * factor[..., None]).sum(0)
    return log_sum, mean


def bank_sigmoid(
    anchors, banks, index, scale, bias, spec, needs_grad, plan, draw_backend, part: Part | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.bank_sigmoid`, in fp32; values are not checked."""
    call = Call(anchors, banks, index, spec, plan, draw_backend, part)
    value, slope = call.empty(), call.empty()
    sums = call.empty(call.dim) if needs_grad else value.new_empty(0)
    scalars = scale.to(torch.float32), bias.to(torch.float32)
    for piece, values, slopes, rows in _walked(call, False, scalars, needs_grad):
        at = piece.directions, piece.anchors
        value[at], slope[at] = values.sum(0) * math.log(2), slopes.sum(0)
        if needs_grad:
            sums[at] = rows.sum(0)
    return value, slope, sums


def _walked(
    call: Call, softmax: bool, scalars: tuple[Tensor, Tensor], needs_grad: bool
) -> Iterator[tuple[Piece, Tensor, Tensor, Tensor]]:
    """Each piece and its splits' results, see `critic_fwd_kernel`."""
    from . import triton_critics

    for piece in call.pieces(by_column=needs_grad):
        value, slope = piece.scratch(), piece.scratch()
        grad = piece.scratch(call.dim) if needs_grad else value
        piece.walk(
            triton_critics.critic_fwd_kernel,
            terms_ptr=piece.terms(),
            scale_ptr=scalars[0],
            bias_ptr=scalars[1],
            value_ptr=value,
            slope_ptr=slope,
            grad_ptr=grad,
            NEEDS_GRAD=needs_grad,
            SOFTMAX=softmax,
            W_TERMS=min(_W_TERMS, call.limit),
        )
        yield piece, value, slope, grad


def bank_log_z(anchors, banks, index, spec, temperature, plan, draw_backend, known: Tensor | None = None) -> Tensor:
    """The batch's estimate of log Z, [S] fp32: log of N times the mean over all anchors and their K_b + 1 scores.

    With `known` [S] only its NaN entries are estimated. The kernel returns at once for the others, and their results
    are undefined.
    """
    call = Call(anchors, banks, index, spec, plan, draw_backend)
    own, count = _log_sum_exps(call, temperature, known)
    return own.logsumexp(1) - count.sum().log() + math.log(call.num_rows)


def bank_log_sum_exp(anchors, banks, index, spec, temperature, plan, draw_backend, part: Part | None = None) -> Tensor:
    """log of the sum of exp(score / tau) over all anchors and their K_b + 1 scores, fp64 [S]."""
    call = Call(anchors, banks, index, spec, plan, draw_backend, part)
    return _log_sum_exps(call, temperature)[0].double().logsumexp(1)


def _log_sum_exps(call: Call, temperature: float, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The log-sum-exp of each anchor's scores / tau, fp32 [S, B], and the number of these scores, fp32 [B]."""
    from . import triton_anchor, triton_kernels

    own, count = call.empty(), call.anchors.new_empty(call.batch, dtype=torch.float32)
    log_z = own if known is None else known.to(torch.float32).contiguous()
    for piece in call.pieces(by_column=False):
        top, total = piece.scratch(), piece.scratch()
        piece.walk(
            triton_kernels.log_z_fwd_kernel,
            terms_ptr=piece.terms(),
            log_z_ptr=log_z[piece.directions],
            ONLY_UNSET=known is not None,
            top_ptr=top,
            sum_ptr=total,
            temperature=temperature,
        )
        piece.finish(
            triton_anchor.log_z_finish_kernel,
            top_ptr=top,
            sum_ptr=total,
            count_ptr=count[piece.anchors],
            temperature=temperature,
            **piece.output("out", own),
        )
    return own, count
