"""Factor transfer (Kim et al. 2018): a paraphraser makes the teacher's factors, the student's translator imitates them.

A pre-training stage fits the paraphraser, an autoencoder of the teacher's feats[-2], by mean squared error. Then the
student is trained on the *mean absolute* difference of the normalised factors. As in the public code, the squares of a
factor are averaged over channels and L2-normalised; the paper normalises the factor itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from ..nn.options import option
from ..ops import checks
from .at import attention
from .base import Pair
from .maps import require_maps, require_same_aspect, same_size
from .stage import Stage, StageOptions
from .weighted_term import WeightedTerm

LEAK = 0.1


@dataclass
class FTOptions(StageOptions):
    """Options of "ft".

    Attributes:
        weight: weight of the factor loss.
        rate: channels of a factor, as a fraction of the teacher's.
        stage_lr: learning rate of the paraphraser (published for resnet and wrn students).
    """

    weight: float = 200.0
    rate: float = option(0.5, checks.positive)
    stage_lr: float | None = 0.01


class Paraphraser(nn.Module):
    """Three convolutions to the factors and three transposed ones back, leaky ReLUs, no batch norm."""

    def __init__(self, channels: int, factors: int) -> None:
        super().__init__()
        self.encoder = _convolutions(channels, channels, factors, factors)
        self.decoder = _convolutions(factors, factors, channels, channels, transposed=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class FT(WeightedTerm):
    """A stage for the paraphraser, then weight * mean | factor_s - factor_t |."""

    term = "factor"
    features_used = 2

    def __init__(self, pair: Pair, options: FTOptions) -> None:
        super().__init__(pair, options)
        shapes = [side[-2] for side in (pair.student_shapes, pair.teacher_shapes) if len(side) > 1]
        require_maps("ft", shapes)
        if len(shapes) < 2:
            raise ValueError("ft: compares the features before the last, but one of the networks has only one feature")
        require_same_aspect("ft", [(shapes[0], shapes[1])])
        (s_channels, *_), (t_channels, *_) = shapes
        factors = int(t_channels * options.rate)
        if factors < 1:
            raise ValueError(f"rate: expected at least one factor of {t_channels} channels, got {options.rate}")
        self.paraphraser = Paraphraser(t_channels, factors)
        self.translator = _convolutions(s_channels, s_channels, factors, factors, batch_norm=True)
        self.stage = Stage(self.reconstruction, (self.paraphraser,), trains_student=False)

    def reconstruction(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        """The loss of the stage: mean squared error of the paraphraser's reconstruction."""
        return F.mse_loss(self.paraphraser(teacher[-2]), teacher[-2])

    def compared(self, student: list[Tensor], teacher: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return [self.translator(student[-2])], [self.paraphraser.encoder(teacher[-2]).detach()]

    def distance(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        s, t = same_size(student[0], teacher[0])
        return (attention(s) - attention(t)).abs().mean()


def _convolutions(*channels: int, batch_norm: bool = False, transposed: bool = False) -> nn.Sequential:
    convolution = nn.ConvTranspose2d if transposed else nn.Conv2d
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers.append(convolution(before, after, kernel_size=3, stride=1, padding=1))
        layers += [nn.BatchNorm2d(after)] if batch_norm else []
        layers.append(nn.LeakyReLU(LEAK))
    return nn.Sequential(*layers)
