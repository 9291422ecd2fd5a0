"""Methods that add one weighted term, a distance between the features of the two networks.

Under autocast the modules that a method trains run as the student does. The distance is computed in fp32 (fp64 for fp64
features): in half precision it would be off by more than it measures.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..nn.embed import autocast_off
from ..nn.options import option
from ..ops import checks
from ..ops.tensors import accumulation_dtype
from .base import Batch, Loss, Method, Options, Outputs, Pair


@dataclass
class WeightedOptions(Options):
    """Options of a method with one term: a subclass sets the published weight.

    Attributes:
        weight: weight of the method's own term.
    """

    weight: float = option(1.0, checks.non_negative)


class WeightedTerm(Method):
    """CE + weight * distance; a subclass names its term and implements `distance`, and `compared` if need be."""

    term: str

    def __init__(self, pair: Pair, options: WeightedOptions) -> None:
        super().__init__(pair, options)
        self.weight = options.weight

    def compared(self, student: list[Tensor], teacher: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """What `distance` compares: some of the features, or what the method's own modules make of them."""
        return student, teacher

    def distance(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        """The unweighted term of what `compared` returns, a scalar, outside autocast; `teacher` carries no gradient."""
        raise NotImplementedError(f"{type(self).__name__} does not implement distance()")

    def own_loss(self, student: Outputs, teacher: Outputs, batch: Batch) -> Loss:
        compared = self.compared(student.feats, [f.detach() for f in teacher.feats])
        with autocast_off(student.logits.device):
            value = self.distance(*([f.to(accumulation_dtype(f)) for f in side] for side in compared))
        return Loss(self.weight * value, {self.term: value.detach()})
