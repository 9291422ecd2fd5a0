"""The pre-training stage of AB, FSP and FT, before the student's own training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from ..ops import checks
from .base import Method, Pair
from .weighted_term import WeightedOptions


@dataclass
class StageOptions(WeightedOptions):
    """Options of a method with a pre-training stage.

    Attributes:
        stage_epochs: epochs of the stage; default: an eighth of the student's (30 of the published 240).
        stage_lr: constant learning rate of the stage; default: the student's first.
    """

    stage_epochs: int | None = None
    stage_lr: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stage_epochs is not None:
            checks.integer("stage_epochs", self.stage_epochs, least=1)
        if self.stage_lr is not None:
            checks.positive("stage_lr", self.stage_lr)


@dataclass(frozen=True)
class Stage:
    """One pre-training stage.

    Attributes:
        loss: maps the student's features and the teacher's, which carry no gradient, to a scalar.
        modules: the method's own modules that are trained.
        trains_student: train all of the student but its head, which stays in eval mode.
        preact: the features are taken before their activation.
    """

    loss: Callable[[list[Tensor], list[Tensor]], Tensor]
    modules: tuple[nn.Module, ...]
    trains_student: bool
    preact: bool = False


def feature_modules(student: nn.Module) -> list[nn.Module]:
    """The submodules of a network that make its features: all but `student.head`, if it has one.

    A submodule that contains the head, such as the network in a `Tapped`, is replaced by its children.
    """
    return _without_head(student, getattr(student, "head", None))


def _without_head(module: nn.Module, head: nn.Module | None) -> list[nn.Module]:
    result: list[nn.Module] = []
    for child in module.children():
        if all(m is not head for m in child.modules()):
            result.append(child)
        elif child is not head:
            result += _without_head(child, head)
    return result


def require_taps(method: Method, pair: Pair) -> None:
    """ValueError if the method's stage asks for features before the activation of a network that has none."""
    if method.stage is not None and method.stage.preact and pair.without_preact:
        raise ValueError(
            f"{type(method).__name__.lower()}: its stage needs features before the activation, which this package's "
            f"networks give for preact=True; got others for the {' and the '.join(pair.without_preact)}"
        )
