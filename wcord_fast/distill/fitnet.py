"""FitNets (Romero et al. 2015): a regressor maps the student's second stage to the teacher's.

The public code uses feature 2, a convolutional regressor with batch norm and ReLU, and the mean squared error. It
trains this hint together with the other terms; the paper trains the hint first.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor
from torch.nn import functional as F

from ..nn.options import option
from ..ops import checks
from .base import Pair
from .maps import require_maps
from .regressor import ConvRegressor
from .weighted_term import WeightedOptions, WeightedTerm


@dataclass
class FitNetOptions(WeightedOptions):
    """Options of "fitnet".

    Attributes:
        weight: weight of the hint loss.
        layer: number of the imitated feature, counted from 0.
    """

    weight: float = 100.0
    layer: int = option(2, partial(checks.integer, least=0))


class FitNet(WeightedTerm):
    """weight * mean squared error between the regressed student map and the teacher's."""

    term = "hint"
    features_used = None

    def __init__(self, pair: Pair, options: FitNetOptions) -> None:
        super().__init__(pair, options)
        self.layer = options.layer
        shared = min(len(pair.student_shapes), len(pair.teacher_shapes))
        if self.layer >= shared:
            raise ValueError(f"layer: expected a feature that both networks have, 0 .. {shared - 1}, got {self.layer}")
        shapes = (pair.student_shapes[self.layer], pair.teacher_shapes[self.layer])
        require_maps("fitnet", shapes)
        try:
            self.regressor = ConvRegressor(*shapes)
        except ValueError as error:
            raise ValueError(f"fitnet: {error}") from None

    def compared(self, student: list[Tensor], teacher: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return [self.regressor(student[self.layer])], [teacher[self.layer]]

    def distance(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        return F.mse_loss(student[0], teacher[0])
