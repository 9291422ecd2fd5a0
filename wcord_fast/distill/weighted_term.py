"""Methods that add one weighted term, a distance between the features of the two networks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..nn.options import option
from ..ops import checks
from .base import Batch, Loss, Method, Options, Outputs, Pair


@dataclass
class WeightedOptions(Options):
    """Options of a method with one term: a subclass sets the published weight.

    Attributes:
        weight: weight of the method's own term.
    """

    weight: float = option(1.0, checks.non_negative)


class WeightedTerm(Method):
    """CE + weight * distance; a subclass names its term and implements `distance`."""

    term: str

    def __init__(self, pair: Pair, options: WeightedOptions) -> None:
        super().__init__(pair, options)
        self.weight = options.weight

    def distance(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        """The unweighted term, a scalar; `teacher` carries no gradient."""
        raise NotImplementedError(f"{type(self).__name__} does not implement distance()")

    def own_loss(self, student: Outputs, teacher: Outputs, batch: Batch) -> Loss:
        value = self.distance(student.feats, [f.detach() for f in teacher.feats])
        return Loss(self.weight * value, {self.term: value.detach()})
