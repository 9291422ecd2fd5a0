"""InfoNCE and the sigmoid loss of anchors against a bank: the ops, and the ends of both losses.

A backend scores the negatives (`bank_infonce`, `bank_sigmoid` in reference.py). The positive's term, which may be a row
of the bank or a row that the caller gives, is added here: O(S * B * D), in fp64, for banks in one piece and for shards.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks, library
from ..sampling.spec import DrawSpec
from ..status import Code
from ..tensors import accumulation_dtype
from . import native_cuda, triton
from .op import SPEC, checked, checks_itself, select
from .reference import softplus

EMPTY = (0,)  # the shape of a gradient that is not needed


def infonce_end(
    anchors: Tensor, positives: Tensor, log_sum: Tensor, mean: Tensor, temperature: float, needs_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """-s_0 / tau + log(sum of exp(s_k / tau) over k = 0..K), and its gradients in anchors and positives.

    Args:
        anchors, positives: [S, B, D].
        log_sum, mean: of the negatives, see `reference.bank_infonce`.
    Returns:
        fp64 [S, B], [S, B, D], [S, B, D]; the gradients empty where they are not wanted.
    """
    anchors, positives = anchors.double(), positives.double()
    gap = log_sum.double() - (anchors * positives).sum(-1) / temperature
    loss = softplus(gap)
    if not needs_grad:
        return loss, loss.new_empty(EMPTY), loss.new_empty(EMPTY)
    slope = (torch.sigmoid(gap) / temperature)[..., None]  # sigmoid(gap): the softmax mass of the negatives
    return loss, slope * (mean - positives), -slope * anchors


def sigmoid_end(
    anchors: Tensor,
    positives: Tensor,
    scale: Tensor,
    bias: Tensor,
    sums: tuple[Tensor, Tensor, Tensor],
    needs_grad: bool,
) -> tuple[Tensor, ...]:
    """softplus(-u_0) + sum of softplus(u_k), u = scale * s + bias, and its gradients.

    Args:
        anchors, positives: [S, B, D].
        scale, bias: scalars.
        sums: of the negatives, see `reference.bank_sigmoid`.
    Returns:
        fp64 [S, B] and the gradients in anchors and positives [S, B, D], scale and bias [S, B], empty where not wanted.
    """
    anchors, positives, scale, bias = (t.double() for t in (anchors, positives, scale, bias))
    value, slope, rows = sums
    score = (anchors * positives).sum(-1)
    u = scale * score + bias
    loss = value.double() + softplus(-u)
    if not needs_grad:
        return (loss, *(loss.new_empty(EMPTY) for _ in range(4)))
    own = torch.sigmoid(-u)
    in_anchor = scale * (rows - own[..., None] * positives)
    in_scale = (anchors * rows).sum(-1) - own * score
    return loss, in_anchor, -scale * own[..., None] * anchors, in_scale, slope.double() - own


def finite_scalar(name: str, value: Tensor) -> None:
    """Raise ValueError for a scalar on the CPU that is not finite. On a device such a scalar makes the results NaN."""
    if value.device.type == "cpu" and not bool(torch.isfinite(value)):
        raise ValueError(f"{name}: expected a finite number, got {float(value)}")


def finite_positives(positive: Tensor | None) -> Tensor | bool:
    """bool [S, B]: True where the rows that the caller gives are finite; on the CPU a bad one is an error."""
    return True if positive is None else checks.finite_rows("positive", positive, Code.ANCHOR)


def infonce(
    anchors,
    banks,
    index,
    positive,
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
    run = _Scoring("bank_infonce", anchors, banks, index, positive, spec, plan, backend)
    log_sum, mean = run.module.bank_infonce(anchors, banks, run.index, run.spec, temperature, needs_grad, *run.plan)
    return run.results(infonce_end(anchors, run.positives(), log_sum, mean, temperature, needs_grad))


def sigmoid(
    anchors,
    banks,
    index,
    positive,
    scale,
    bias,
    tables,
    source,
    k,
    replacement,
    expected,
    anchor_offset,
    needs_grad,
    plan,
    backend,
):
    finite_scalar("scale", scale)
    finite_scalar("bias", bias)
    spec = DrawSpec(source, k, replacement, expected, anchor_offset, tables)
    run = _Scoring("bank_sigmoid", anchors, banks, index, positive, spec, plan, backend)
    sums = run.module.bank_sigmoid(anchors, banks, run.index, scale, bias, run.spec, needs_grad, *run.plan)
    return run.results(sigmoid_end(anchors, run.positives(), scale, bias, sums, needs_grad))


class _Scoring:
    """The work of both ops before and after the negatives are scored."""

    def __init__(self, op, anchors, banks, index, positive, spec, plan, backend):
        self.banks, self.positive, self.index, self.spec = banks, positive, index, spec
        self.acc = accumulation_dtype(anchors, *banks, *([] if positive is None else [positive]))
        self.module, *self.plan = select(op, anchors, banks, spec, plan, backend)
        self.ok = finite_positives(positive)
        if self.module is triton or not checks_itself(self.module, anchors, spec):
            self.index, self.spec, ok = checked(anchors, banks[0].shape[0], index, spec)
            self.ok = ok & self.ok

    def positives(self) -> Tensor:
        """The positives [S, B, D]. Read it after the index has been checked."""
        if self.positive is not None:
            return self.positive
        own = self.index.long()
        if self.module is native_cuda:  # the negatives' sums of an anchor with a bad index are NaN; no such row is read
            own = own.clamp(0, self.banks[0].shape[0] - 1)
        return torch.stack([bank[own] for bank in self.banks])

    def results(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The op's results: NaN for an anchor that was flagged on a device, no gradient for a row of the bank."""
        tensors = tuple(t.to(self.acc) for t in tensors)
        if isinstance(self.ok, Tensor) and self.ok.device.type != "cpu":
            tensors = tuple(t if t.dim() == 1 else _nan_unless(self.ok, t) for t in tensors)
        loss, in_anchor, in_positive, *others = tensors
        return loss, in_anchor, loss.new_empty(EMPTY) if self.positive is None else in_positive, *others


def _nan_unless(ok: Tensor, values: Tensor) -> Tensor:
    """`values` [S, B] or [S, B, D] where `ok` [S, B] is True, else NaN."""
    return torch.where(ok if values.dim() == 2 else ok[..., None], values, torch.nan)


def _fake(anchors, banks, positive, needs_grad, scalars):
    """Empty results of the shapes and dtypes of the real ones; `scalars` have a gradient per anchor."""
    acc = accumulation_dtype(anchors, *banks, *([] if positive is None else [positive]))

    def empty(shape, wanted=True):
        return anchors.new_empty(shape if wanted else EMPTY, dtype=acc)

    own = (empty(anchors.shape[:2]), empty(anchors.shape, needs_grad))
    given = needs_grad and positive is not None
    return (*own, empty(anchors.shape, given), *(empty(anchors.shape[:2], needs_grad) for _ in range(scalars)))


_ARGUMENTS = "(Tensor anchors, Tensor[] banks, Tensor index, Tensor? positive, "
_ENDS = "bool needs_grad, str plan, str backend) -> "

infonce_op = library.register(
    f"bank_infonce{_ARGUMENTS}{SPEC}, float temperature, {_ENDS}(Tensor, Tensor, Tensor)",
    infonce,
    lambda anchors, banks, index, positive, *rest: _fake(anchors, banks, positive, rest[-3], 0),
)
sigmoid_op = library.register(
    f"bank_sigmoid{_ARGUMENTS}Tensor scale, Tensor bias, {SPEC}, {_ENDS}(Tensor, Tensor, Tensor, Tensor, Tensor)",
    sigmoid,
    lambda anchors, banks, index, positive, *rest: _fake(anchors, banks, positive, rest[-3], 2),
)
