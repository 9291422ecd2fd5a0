"""Activation boundaries (Heo et al. 2019): before its own training, the student learns which neurons are on.

A pre-training stage fits the pre-activations of feats[1:-1]; cross entropy alone follows. As in the public code, the
margin is 1, a connector is one convolution with batch norm where the shapes differ, stage i of n has the weight
2^(i - n + 1), and the sum over all elements is multiplied by 3 / 1000 and divided by the batch size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..nn.options import option
from ..ops import checks
from .base import Method, Pair
from .maps import stage_maps
from .regressor import ConvRegressor
from .stage import Stage, StageOptions

SCALE = 3 / 1000  # as in the public code


@dataclass
class ABOptions(StageOptions):
    """Options of "ab".

    Attributes:
        weight: weight of the boundary loss in its stage.
        margin: how far beyond the boundary a neuron has to be.
    """

    margin: float = option(1.0, checks.positive)


class AB(Method):
    """A stage on activation boundaries, then CE."""

    def __init__(self, pair: Pair, options: ABOptions) -> None:
        super().__init__(pair, options)
        self.weight, self.margin = options.weight, options.margin
        connectors: list[nn.Module] = []
        for s, t in stage_maps("ab", pair):
            try:
                connectors.append(nn.Identity() if s == t else ConvRegressor(s, t, relu=False))
            except ValueError as error:
                raise ValueError(f"ab: {error}") from None
        self.connectors = nn.ModuleList(connectors)
        self.stage = Stage(self.boundaries, (self.connectors,), trains_student=True, preact=True)

    def boundaries(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        """The weighted loss of the stage on pre-activations."""
        count = len(self.connectors)
        losses = [
            2.0 ** (i - count + 1) * boundary_loss(connect(s), t, self.margin)
            for i, (connect, s, t) in enumerate(zip(self.connectors, student[1:-1], teacher[1:-1], strict=True))
        ]
        return self.weight * SCALE * torch.stack(losses).sum() / len(student[0])


def boundary_loss(s: Tensor, t: Tensor, margin: float) -> Tensor:
    """Sum of squared distances to the margin, over the elements where s is not beyond it with the sign of t."""
    on = t > 0
    wrong = torch.where(on, s <= margin, s > -margin)
    return (torch.where(on, s - margin, s + margin).square() * wrong).sum()
