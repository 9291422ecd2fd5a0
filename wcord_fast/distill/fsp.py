"""Flow of solution procedure (Yim et al. 2017): Gram matrices of consecutive maps are matched in pre-training.

A stage minimises the mean squared difference of the matrices of consecutive maps in feats[:-1]; cross entropy alone
follows. Both networks must have equally many channels in every stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Method, Pair
from .maps import require_maps, same_size
from .stage import Stage, StageOptions


@dataclass
class FSPOptions(StageOptions):
    """Options of "fsp".

    Attributes:
        weight: weight of the flow loss, the only term in its stage.
    """

    weight: float = 50.0


class FSP(Method):
    """A stage on the flow matrices, then CE."""

    def __init__(self, pair: Pair, options: FSPOptions) -> None:
        super().__init__(pair, options)
        self.weight = options.weight
        s, t = pair.student_shapes[:-1], pair.teacher_shapes[:-1]
        require_maps("fsp", [*s, *t])
        channels = [[shape[0] for shape in shapes] for shapes in (s, t)]
        if channels[0] != channels[1]:
            raise ValueError(
                "fsp: compares matrices of channels by channels, which needs the same channels in every stage, but the "
                f"student has {channels[0]} and the teacher {channels[1]}"
            )
        if len(s) < 2:
            raise ValueError("fsp: compares consecutive feature maps, but there is only one")
        for low, high in (*pairwise(s), *pairwise(t)):
            if (low[1] - high[1]) * (low[2] - high[2]) < 0:
                raise ValueError(
                    "fsp: multiplies consecutive maps position by position, the larger averaged to the smaller, but "
                    f"{list(low)} is followed by {list(high)}"
                )
        self.stage = Stage(self.flow_loss, (), trains_student=True)

    def flow_loss(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        """The weighted loss of the stage."""
        pairs = zip(flows(student[:-1]), flows(teacher[:-1]), strict=True)
        return self.weight * torch.stack([F.mse_loss(s, t) for s, t in pairs]).sum()


def flows(maps: list[Tensor]) -> list[Tensor]:
    """Matrices [B, C_i, C_i+1]: products of the channels of consecutive maps, averaged over positions."""
    result = []
    for low, high in pairwise(maps):
        low, high = (f.flatten(2) for f in same_size(low, high))
        result.append(low @ high.mT / low.shape[2])
    return result
