"""SinKD: transport between the class probabilities of a batch (Cui et al., COLING 2024, arXiv 2402.17110).

Let s_i and t_j be the softmaxes at temperature T of the student's logits for image i and of the teacher's for image j,
and D_ij = |s_i - t_j|_1. The term is <P, D>, where P is the entropic transport plan between the batch's images with
uniform masses, after `iters` scalings of rows and columns of exp(-D / eps). P ignores which rows belong to one image.

The objective is CE + weight * SinKD; "sinkd+kd" adds KD, as the paper does. The default weight is beta of the authors'
scripts. In their code P has mass B, not 1, the term has a further factor 0.002, and the gradient goes through the
iterations; here P is held fixed. The paper is on language models and has no numbers for the published pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from .. import functional as F
from ..nn.options import option
from ..ops import checks
from .base import Batch, Loss, Method, Outputs, Pair, require_one_label_set
from .weighted_term import WeightedOptions


@dataclass
class SinKDOptions(WeightedOptions):
    """Options of "sinkd".

    Attributes:
        weight: weight of the transport between the batch's class probabilities.
        temperature: temperature of the softmaxes.
        eps: regularisation of the transport.
        iters: iterations of the transport.
    """

    weight: float = 0.8
    temperature: float = option(2.0, checks.positive)
    eps: float = option(0.1, checks.divisor)
    iters: int = option(20, partial(checks.integer, least=1))


class SinKD(Method):
    """CE + weight * <P, D>, on the logits."""

    options: SinKDOptions

    def __init__(self, pair: Pair, options: SinKDOptions) -> None:
        super().__init__(pair, options)
        require_one_label_set("sinkd:", pair)

    def own_loss(self, student: Outputs, teacher: Outputs, batch: Batch) -> Loss:
        s, t = student.logits, teacher.logits.detach()
        dtype = torch.promote_types(s.dtype, torch.float32)
        s, t = ((z.to(dtype) / self.options.temperature).softmax(1) for z in (s, t))
        value = F.ot_cost_from_matrix(torch.cdist(s, t, p=1), eps=self.options.eps, iters=self.options.iters)
        return Loss(self.options.weight * value, {"sinkhorn": value.detach()})
