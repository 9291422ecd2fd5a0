"""The bank ops by the gather plan in CUDA C++: csrc/cuda/bank_gather.cu, bank_gather_any.cu, bank_finish.cu.

Same signatures and results as reference.py with plan="gather". Two launches (three for log Z) on the current stream:
nothing is read back, and the seed and the step are read on the device, so a captured graph draws anew at each replay
when the step advances inside it. No tensor of size B x K is made. Of a part of a bank the draws that it does not hold
are skipped, see README.md.

The kernels check their own input: an anchor that is not finite, an index or an explicit negative out of [0, N) is not
read with, gives NaN in its loss and gradient, and sets its bit in the device's status word.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import native_module, status
from ..sampling.native import draw_args
from ..sampling.spec import DrawSpec
from .part import Part, whole
from .reference import accumulate_dtype

# The codes of csrc/cuda/gather.h.
_NCE, _MEAN, _LOG_Z = range(3)

# How the negatives are cut up over blocks: a function of B and K alone, so that every device adds up in the same order.
BLOCKS = 1024  # wanted in all: four waves of two blocks per SM
LEAST = 512  # negatives per split, which repay opening the anchor
MOST_SPLITS = 256
STEP = 256  # negatives that one block scores at a time


def bank_nce(
    anchors, banks, index, log_z, spec, temperature, needs_grad, plan, draw_backend, part: Part | None = None
) -> tuple[Tensor, Tensor]:
    """CRD's NCE loss per anchor and its gradient: ([S, B], [S, B, D] or empty)."""
    return _score(_NCE, anchors, banks, index, spec, plan, part, temperature, log_z, needs_grad)


def bank_mean_score(
    anchors, banks, index, spec, needs_grad, plan, draw_backend, part: Part | None = None
) -> tuple[Tensor, Tensor]:
    """Mean score of the negatives and its gradient, the mean negative row: ([S, B], [S, B, D] or empty)."""
    return _score(_MEAN, anchors, banks, index, spec, plan, part, needs_grad=needs_grad)


def bank_log_z(anchors, banks, index, spec, temperature, plan, draw_backend, known: Tensor | None = None) -> Tensor:
    """The batch's estimate of log Z, [S]: log of N times the mean over all anchors and their K_b + 1 scores of exp.

    Args:
        known: [S] or None: a direction that is not NaN here keeps this value, and when none is NaN the kernels return
            at once. The choice is made on the device.
    """
    return _score(_LOG_Z, anchors, banks, index, spec, plan, None, temperature, known)[0]


def bank_log_sum_exp(anchors, banks, index, spec, temperature, plan, draw_backend, part: Part | None = None) -> Tensor:
    """log of the sum of exp(score / tau) over all anchors and their K_b + 1 scores, fp64 [S]."""
    each = _score(_LOG_Z, anchors, banks, index, spec, plan, part, temperature, per_anchor=True)[0]  # [S, B]
    return each.double().logsumexp(1)


def split(batch: int, negatives: int) -> tuple[int, int]:
    """(number of splits, negatives per split) for B anchors of at most `negatives` each."""
    splits = max(1, min(-(-BLOCKS // batch), -(-negatives // LEAST), MOST_SPLITS))
    chunk = -(-negatives // (splits * STEP)) * STEP
    return -(-negatives // chunk), chunk


def scratch_bytes(directions: int, batch: int, dim: int, negatives: int, item: int = 4) -> int:
    """Transient memory of a call with gradient, beside its results: at most S * (1024 + B) * (D + 1) values."""
    return directions * batch * split(batch, negatives)[0] * (dim + 1) * item


def _score(
    score, anchors, banks, index, spec, plan, part, temperature=1.0, log_z=None, needs_grad=False, per_anchor=False
):
    """(value, gradient); with `per_anchor` _LOG_Z gives the log-sum-exp of each anchor's scores, [S, B]."""
    if plan != "gather":
        raise NotImplementedError(f"plan={plan!r}: the CUDA C++ kernels walk the draws, expected plan='gather'")
    if len(banks) > 2 or any(bank.dtype != banks[0].dtype for bank in banks):  # never so in the modules
        one = [
            _score(score, anchors[s : s + 1], [b], index, spec, plan, part, temperature, known, needs_grad, per_anchor)
            for s, (b, known) in enumerate(zip(banks, _each(log_z, banks), strict=True))
        ]
        acc = accumulate_dtype(anchors, *banks)
        value, grad = (torch.cat([t.to(acc) for t in side]) for side in zip(*one, strict=True))
        return value, grad
    acc = accumulate_dtype(anchors, *banks)
    directions, batch, dim = anchors.shape
    part, height = part or whole(banks), banks[0].shape[0]
    x = anchors.to(acc).contiguous()
    log_z = None if log_z is None else log_z.to(acc).contiguous()
    value = x.new_empty(directions) if score == _LOG_Z and not per_anchor else x.new_empty(directions, batch)
    grad = torch.empty_like(x) if needs_grad else x.new_empty(0)
    if batch == 0:
        return value.fill_(torch.nan), grad
    splits, chunk = split(batch, height if spec.whole_pool else spec.k)
    partial = x.new_empty(directions, batch, splits)
    partial_grad = x.new_empty(directions, batch, splits, dim) if needs_grad else x.new_empty(0)
    rows = [bank if bank.stride(-1) == 1 else bank.contiguous() for bank in banks]
    index = index.contiguous()
    walked, _alive = walk_args(index, spec, part, height)
    code = native_module.module().cuda_bank_gather(
        *native_module.stream_of(x),
        *walked,
        score,
        directions,
        x.data_ptr(),
        int(acc == torch.float64),
        dim,
        rows[0].data_ptr(),
        rows[-1].data_ptr(),
        native_module.DTYPES[rows[0].dtype],
        rows[0].stride(0),
        rows[-1].stride(0),
        temperature,
        0 if log_z is None else log_z.data_ptr(),
        splits,
        chunk,
        partial.data_ptr(),
        partial_grad.data_ptr() if needs_grad else 0,
        0 if per_anchor else value.data_ptr(),
        grad.data_ptr() if needs_grad else 0,
        status.word(x.device).data_ptr(),
    )
    native_module.check_launch(("bank_nce", "bank_mean_score", "bank_log_z")[score], code)
    status.check_if_asked(x.device)
    return partial[..., 0] if per_anchor else value, grad


def walk_args(index: Tensor, spec: DrawSpec, part: Part, height: int) -> tuple[tuple[int, ...], Tensor | None]:
    """The integers that stand for `WalkArgs` of csrc/cuda/walk.h, and a tensor to keep until the launch.

    The banks hold the `height` rows of the `part`.
    `index` must be contiguous. Explicit rows need not be: those of `contrast_idx[:, 1:]` are read in place.
    """
    num_data, held = part.num_data, (part.first, height)
    if num_data >= 2**32:
        raise ValueError(f"bank: expected fewer than 2^32 rows, got {num_data}")
    if spec.source != "given":
        return (*draw_args(index, num_data, spec), 0, 0, 0, int(spec.whole_pool), *held), None
    rows = spec.table("indices")
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    draws = (index.data_ptr(), index.element_size(), index.shape[0], rows.shape[1], num_data, *(0,) * 10)
    return (*draws, rows.data_ptr(), rows.element_size(), rows.stride(0), 0, *held), rows


def _each(log_z: Tensor | None, banks: list[Tensor]) -> list[Tensor | None]:
    """log Z [1] of each bank."""
    return [None] * len(banks) if log_z is None else [log_z[s : s + 1] for s in range(len(banks))]
