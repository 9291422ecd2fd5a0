"""Partials: the contributions of a part of a bank to the scores of anchors against the whole bank; see part.py."""

from __future__ import annotations

import torch
from torch import Tensor

from ..sampling.spec import DrawSpec
from ..tensors import accumulation_dtype
from .op import select
from .part import Part


def nce(anchors, banks, part: Part, index, log_z, spec: DrawSpec, temperature, needs_grad, plan, backend):
    """This part's partials of the losses and their gradients: ([S, B], [S, B, D] or empty)."""
    if banks[0].shape[0] == 0:
        return _of_no_rows(anchors, banks, needs_grad)
    module, plan, drawer = select("bank_nce", anchors, banks, spec, plan, backend, part)
    return module.bank_nce(anchors, banks, index, log_z, spec, temperature, needs_grad, plan, drawer, part)


def mean_score(anchors, banks, part: Part, index, spec: DrawSpec, needs_grad, plan, backend):
    """This part's partials of the mean negative scores and their gradients: ([S, B], [S, B, D] or empty)."""
    if banks[0].shape[0] == 0:
        return _of_no_rows(anchors, banks, needs_grad)
    module, plan, drawer = select("bank_mean_score", anchors, banks, spec, plan, backend, part)
    return module.bank_mean_score(anchors, banks, index, spec, needs_grad, plan, drawer, part)


def infonce(anchors, banks, part: Part, index, spec: DrawSpec, temperature, needs_grad, plan, backend):
    """log-sum-exp of this part's negative scores / tau and their softmax mean: ([S, B], [S, B, D] or empty)."""
    if banks[0].shape[0] == 0:
        value, grad = _of_no_rows(anchors, banks, needs_grad)
        return value.fill_(-torch.inf), grad
    module, plan, drawer = select("bank_infonce", anchors, banks, spec, plan, backend, part)
    return module.bank_infonce(anchors, banks, index, spec, temperature, needs_grad, plan, drawer, part)


def sigmoid(anchors, banks, part: Part, index, scale, bias, spec: DrawSpec, needs_grad, plan, backend):
    """This part's partials of the sums of `reference.bank_sigmoid`: ([S, B], [S, B], [S, B, D] or empty)."""
    if banks[0].shape[0] == 0:
        value, grad = _of_no_rows(anchors, banks, needs_grad)
        return value, value, grad
    module, plan, drawer = select("bank_sigmoid", anchors, banks, spec, plan, backend, part)
    return module.bank_sigmoid(anchors, banks, index, scale, bias, spec, needs_grad, plan, drawer, part)


def log_sum_exp(anchors, banks, part: Part, index, spec: DrawSpec, temperature, plan, backend) -> Tensor:
    """log of the sum of exp(score / tau) over all anchors and this part's scores among their K_b + 1 scores: [S]."""
    if banks[0].shape[0] == 0:
        return _of_no_rows(anchors, banks, False)[0].new_full((len(banks),), -torch.inf)
    module, plan, drawer = select("bank_log_z", anchors, banks, spec, plan, backend, part)
    return module.bank_log_sum_exp(anchors, banks, index, spec, temperature, plan, drawer, part)


def _of_no_rows(anchors, banks, needs_grad) -> tuple[Tensor, Tensor]:
    acc = accumulation_dtype(anchors, *banks)
    value = torch.zeros(anchors.shape[:2], dtype=acc, device=anchors.device)
    return value, torch.zeros(anchors.shape if needs_grad else (0,), dtype=acc, device=anchors.device)
