"""The bank ops by the gather plan in CUDA C++: csrc/cuda/bank_gather*, bank_finish.cu, bank_critic_finish.cu.

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
from ..tensors import accumulation_dtype
from .native_fields import bank_fields, negative_fields
from .part import Part, whole
from .reference import EPS

# The split of the negatives over blocks depends on B and K only, so every device adds in one order.
BLOCKS = 1024  # target for the grid: four waves of two blocks per SM
LEAST = 512  # negatives per split: enough to repay opening the anchor
MOST_SPLITS = 256


def bank_nce(
    anchors, banks, index, log_z, spec, temperature, needs_grad, plan, draw_backend, part: Part | None = None
) -> tuple[Tensor, Tensor]:
    """CRD's NCE loss per anchor and its gradient: ([S, B], [S, B, D] or empty)."""
    return _score("nce", anchors, banks, index, spec, plan, part, temperature, log_z=log_z, needs_grad=needs_grad)


def bank_mean_score(
    anchors, banks, index, spec, needs_grad, plan, draw_backend, part: Part | None = None
) -> tuple[Tensor, Tensor]:
    """Mean score of the negatives and its gradient, the mean negative row: ([S, B], [S, B, D] or empty)."""
    return _score("mean_score", anchors, banks, index, spec, plan, part, needs_grad=needs_grad)


def bank_infonce(
    anchors, banks, index, spec, temperature, needs_grad, plan, draw_backend, part: Part | None = None
) -> tuple[Tensor, Tensor]:
    """log-sum-exp of each anchor's negative scores / tau, and their softmax mean: ([S, B], [S, B, D] or empty)."""
    return _score("infonce", anchors, banks, index, spec, plan, part, temperature, needs_grad=needs_grad)


def bank_sigmoid(
    anchors, banks, index, scale, bias, spec, needs_grad, plan, draw_backend, part: Part | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over the negatives of softplus(u), sigmoid(u), sigmoid(u) * row: ([S, B] twice, [S, B, D] or empty).

    `scale` and `bias` stay on the device.
    """
    options = {"scalars": (scale, bias), "needs_grad": needs_grad}
    (value, slope), rows = _score("sigmoid", anchors, banks, index, spec, plan, part, **options)
    return value, slope, rows


def bank_log_z(anchors, banks, index, spec, temperature, plan, draw_backend, known: Tensor | None = None) -> Tensor:
    """The batch's estimate of log Z, [S]: log of N times the mean over all anchors and their K_b + 1 scores of exp.

    Args:
        known: [S] or None. A direction whose entry is not NaN keeps it; if no entry is NaN the kernels return at once.
            The device makes this choice.
    """
    return _score("log_z", anchors, banks, index, spec, plan, None, temperature, log_z=known)[0]


def bank_log_sum_exp(anchors, banks, index, spec, temperature, plan, draw_backend, part: Part | None = None) -> Tensor:
    """log of the sum of exp(score / tau) over all anchors and their K_b + 1 scores, fp64 [S]."""
    each = _score("log_z", anchors, banks, index, spec, plan, part, temperature, per_anchor=True)[0]  # [S, B]
    return each.double().logsumexp(1)


def split(batch: int, negatives: int) -> tuple[int, int]:
    """(number of splits, negatives per split) for B anchors of at most `negatives` each."""
    step = native_module.module().GATHER_THREADS  # negatives that one block scores at a time
    splits = max(1, min(-(-BLOCKS // batch), -(-negatives // LEAST), MOST_SPLITS))
    chunk = -(-negatives // (splits * step)) * step
    return -(-negatives // chunk), chunk


def scratch_bytes(directions: int, batch: int, dim: int, negatives: int, item: int = 4) -> int:
    """Transient memory of a call with gradient, beside its results: at most S * (1024 + B) * (D + 1) values."""
    return directions * batch * split(batch, negatives)[0] * (dim + 1) * item


def _score(
    op,
    anchors,
    banks,
    index,
    spec,
    plan,
    part,
    temperature=1.0,
    *,
    log_z=None,
    scalars=None,
    needs_grad=False,
    per_anchor=False,
):
    """(value, gradient): the sigmoid's values are [2, S, B].

    Args:
        scalars: of the sigmoid: the tensors scale and bias.
        per_anchor: log_z gives the log-sum-exp of each anchor's scores, [S, B].
    """
    if plan != "gather":
        raise NotImplementedError(f"plan={plan!r}: the CUDA C++ kernels walk the draws, expected plan='gather'")
    if len(banks) > 2 or any(bank.dtype != banks[0].dtype for bank in banks):  # does not occur in the modules
        options = {"scalars": scalars, "needs_grad": needs_grad, "per_anchor": per_anchor}
        one = [
            _score(op, anchors[s : s + 1], [b], index, spec, plan, part, temperature, log_z=known, **options)
            for s, (b, known) in enumerate(zip(banks, _each(log_z, banks), strict=True))
        ]
        acc = accumulation_dtype(anchors, *banks)
        values, grads = ([t.to(acc) for t in results] for results in zip(*one, strict=True))
        return torch.cat(values, 1 if op == "sigmoid" else 0), torch.cat(grads)
    acc = accumulation_dtype(anchors, *banks)
    directions, batch, dim = anchors.shape
    part, height = part or whole(banks), banks[0].shape[0]
    x = anchors.to(acc).contiguous()
    log_z = None if log_z is None else log_z.to(acc).contiguous()
    scalars = None if scalars is None else torch.stack([t.to(acc) for t in scalars])
    sums = (2,) if op == "sigmoid" else ()
    value = x.new_empty(directions) if op == "log_z" and not per_anchor else x.new_empty(*sums, directions, batch)
    grad = torch.empty_like(x) if needs_grad else x.new_empty(0)
    if batch == 0:
        return value.fill_(torch.nan), grad
    splits, chunk = split(batch, height if spec.whole_pool else spec.k)
    partial = x.new_empty(*sums, directions, batch, splits)
    partial_grad = x.new_empty(directions, batch, splits, dim) if needs_grad else x.new_empty(0)
    rows = [bank if bank.stride(-1) == 1 else bank.contiguous() for bank in banks]
    index = index.contiguous()
    native = native_module.module()
    negatives, _alive = negative_fields(index, spec, part, height)
    record = native.BankScore(
        **negatives,
        op=native.BANK_OPS[op],
        plan=native.BANK_PLANS["gather"],
        wide=acc == torch.float64,
        directions=directions,
        dim=dim,
        anchors=x.data_ptr(),
        **bank_fields(rows),
        temperature=temperature,
        charged=spec.k,
        nce_eps=EPS,
        log_z=0 if log_z is None else log_z.data_ptr(),
        scalars=0 if scalars is None else scalars.data_ptr(),
        splits=splits,
        chunk=chunk,
        partial=partial.data_ptr(),
        partial_grad=partial_grad.data_ptr(),  # 0 without a gradient: the tensor is empty
        value=0 if per_anchor else value.data_ptr(),
        grad=grad.data_ptr(),
        **native_module.on_cuda(x),
    )
    native_module.check_launch(f"bank_{op}", native.cuda_bank_score(record))
    status.check_if_enabled(x.device)
    return partial[..., 0] if per_anchor else value, grad


def _each(log_z: Tensor | None, banks: list[Tensor]) -> list[Tensor | None]:
    """The entries [1] of log Z, one for each bank."""
    return [None] * len(banks) if log_z is None else [log_z[s : s + 1] for s in range(len(banks))]
