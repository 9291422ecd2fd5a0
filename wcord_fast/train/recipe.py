"""How one network is trained: the options that the command and `distill.fit` share."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import torch

from ..distill.base import check_ranges
from ..ops import checks


@dataclass
class Recipe:
    """The published recipe by default.

    Attributes:
        epochs: passes over the training set.
        accumulate: batches per optimiser step, their losses averaged; each is a step of the methods' banks.
        lr: learning rate (SGD).
        momentum: SGD's momentum.
        weight_decay: SGD's weight decay.
        milestones: the rate decays after these epochs; numbers below 1 are fractions of all epochs.
        lr_decay: factor of each decay.
        clip_grad: largest norm of the whole gradient; default: no limit.
        seed: of initialisation, order, augmentation and negatives; equal for all methods, so they are paired.
        precision: fp32, or bf16 autocast.
        channels_last: keep images and weights in channels-last memory order.
        compile: run both networks' forward and backward passes through torch.compile.
        cuda_graph: replay the step as one CUDA graph (CUDA only, not with accumulate).
    """

    epochs: int = 240
    accumulate: int = 1
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    milestones: list[float] = field(default_factory=lambda: [0.625, 0.75, 0.875])
    lr_decay: float = 0.1
    clip_grad: float | None = None
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = False
    compile: bool = False
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "accumulate"):
            checks.integer(name, getattr(self, name), least=1)
        if checks.integer("seed", self.seed, least=0) >= 2**63:
            raise ValueError(f"seed: expected an int below 2^63, got {self.seed}")
        checks.positive("lr", self.lr)
        if self.clip_grad is not None:
            checks.positive("clip_grad", self.clip_grad)
        checks.fraction("momentum", self.momentum)
        checks.non_negative("weight_decay", self.weight_decay)
        checks.positive("lr_decay", self.lr_decay)
        checks.choice("precision", self.precision, ("fp32", "bf16"))
        if self.cuda_graph and self.accumulate > 1:
            raise ValueError(
                f"cuda_graph: a replay overwrites the gradients; expected accumulate=1, got {self.accumulate}"
            )
        if not isinstance(self.milestones, list):
            raise TypeError(f"milestones: expected a list of numbers, got {self.milestones!r}")
        for m in self.milestones:
            checks.positive("milestones", m)
        check_ranges(self, skip=("seed",))

    def require_runnable(self, device: torch.device, processes: int) -> None:
        """ValueError where `device`, or the number of processes, does not allow `compile` or `cuda_graph`."""
        if self.cuda_graph and device.type != "cuda":
            raise ValueError(f"cuda_graph: expected a CUDA device, got {device}")
        for option in ("compile", "cuda_graph"):
            if getattr(self, option) and processes > 1:
                raise ValueError(f"{option}: expected one process, got {processes}; not supported with several")

    def described(self) -> dict[str, Any]:
        """The recipe as a run's spec holds it: what must be equal when the run is resumed."""
        values = {f.name: getattr(self, f.name) for f in fields(Recipe)}
        values |= {name: float(values[name]) for name in ("lr", "momentum", "weight_decay", "lr_decay")}
        values["milestones"] = [float(m) for m in self.milestones]
        for name in ("compile", "cuda_graph"):  # None as in a checkpoint from before there was the option
            values[name] = values[name] or None
        return values


DEFAULTS = asdict(Recipe())
