"""The training options of one network, shared by the command and `distill.fit`."""

from __future__ import annotations

import inspect
import pkgutil
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from ..distill.base import check_ranges, described
from ..nn.options import check_fields, option
from ..ops import checks


@dataclass
class Recipe:
    """The published recipe by default.

    Attributes:
        epochs: passes over the training set.
        accumulate: batches per optimiser step, their losses averaged; each is a step of the methods' banks.
        optimizer: a class of torch.optim by its name ("AdamW"), or any class by its dotted path.
        lr: learning rate.
        momentum: momentum of an optimiser that has it (SGD, RMSprop).
        weight_decay: weight decay of the optimiser.
        schedule: the learning rate falls in "steps", or as half a "cosine" from lr to 0 over all epochs.
        warmup: epochs over which the learning rate rises linearly from 0; below 1 a fraction of all epochs.
        milestones: epochs after which "steps" lowers the rate; numbers below 1 are fractions of all epochs.
        lr_decay: factor of each decay.
        label_smoothing: fraction of the cross entropy's target that is spread over all classes.
        mixup: blend every training image with another one of its batch; parameter of the fraction's Beta distribution.
        cutmix: paste a box of another image of the batch instead; likewise. With both, each batch draws one of them.
        ema: decay of a moving average of the student's weights over the steps, such as 0.999, which is tested and
            written beside the student; 0: none.
        clip_grad: largest norm of the whole gradient; default: no limit.
        seed: seed of initialisation, order, augmentation and negatives, equal for all methods.
        precision: fp32, or bf16 autocast.
        channels_last: keep images and weights in channels-last memory order.
        compile: run both networks' forward and backward passes through torch.compile.
        cuda_graph: replay the step as one CUDA graph (CUDA only, not with accumulate).
        gradient_checkpointing: keep the inputs of the student's blocks only and run the blocks again in the backward
            pass: less memory, one more forward pass, equal results.
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
    optimizer: str = option("SGD", later=True)
    schedule: Literal["steps", "cosine"] = option("steps", later=True)
    warmup: float = option(0.0, later=True)
    label_smoothing: float = option(0.0, later=True)
    mixup: float = option(0.0, later=True)
    cutmix: float = option(0.0, later=True)
    ema: float = option(0.0, later=True)
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = False
    compile: bool = False
    cuda_graph: bool = False
    gradient_checkpointing: bool = option(False, later=True)

    def __post_init__(self) -> None:
        check_fields(self)  # words and switches
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
        optimizer_class(self.optimizer)
        for name in ("warmup", "mixup", "cutmix"):
            checks.non_negative(name, getattr(self, name))
        for name in ("label_smoothing", "ema"):
            if not 0 <= checks.number(name, getattr(self, name)) < 1:
                raise ValueError(f"{name}: expected a number in [0, 1), got {getattr(self, name)}")
        if self.cuda_graph and (self.mixup or self.cutmix):
            raise ValueError("cuda_graph: a replay repeats its draws; expected mixup=0 and cutmix=0")
        if self.cuda_graph and self.accumulate > 1:
            raise ValueError(
                f"cuda_graph: a replay overwrites the gradients; expected accumulate=1, got {self.accumulate}"
            )
        for name in ("compile", "cuda_graph"):
            if self.gradient_checkpointing and getattr(self, name):
                raise ValueError(f"gradient_checkpointing: not supported with {name}; expected {name}=False")
        if not isinstance(self.milestones, list):
            raise TypeError(f"milestones: expected a list of numbers, got {self.milestones!r}")
        for m in self.milestones:
            checks.positive("milestones", m)
        check_ranges(self, skip=("seed",))

    def require_runnable(self, device: torch.device, processes: int) -> None:
        """ValueError where `device`, or the number of processes, does not allow `compile` or `cuda_graph`."""
        if self.cuda_graph and device.type != "cuda":
            raise ValueError(f"cuda_graph: expected a CUDA device, got {device}")
        for name in ("compile", "cuda_graph"):
            if getattr(self, name) and processes > 1:
                raise ValueError(f"{name}: expected one process, got {processes}; not supported with several")

    def described(self) -> dict[str, Any]:
        """The recipe in a run's spec; a run is resumed only with an equal recipe."""
        known = {f.name for f in fields(Recipe)}
        values = {name: value for name, value in described(self).items() if name in known}
        values |= {name: float(values[name]) for name in ("lr", "momentum", "weight_decay", "lr_decay")}
        values["milestones"] = [float(m) for m in self.milestones]
        for name in ("compile", "cuda_graph"):  # None, as in checkpoints older than the option
            values[name] = values[name] or None
        return values


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """The optimiser `name`, a class of torch.optim or a dotted path.

    Raises:
        ValueError: an unknown name (the nearest is suggested), or an optimiser without a learning rate.
        TypeError: `name` is not an optimiser.
    """
    if not isinstance(name, str):
        raise TypeError(f"optimizer: expected a str, got {type(name).__name__}")
    if "." in name or ":" in name:
        try:
            result = pkgutil.resolve_name(name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"optimizer: {name!r} cannot be imported: {error}") from error
    else:
        names = [key for key, value in vars(torch.optim).items() if _is_optimizer(value) and value is not Optimizer]
        result = getattr(torch.optim, checks.choice("optimizer", name, names))
    if not _is_optimizer(result):
        raise TypeError(f"optimizer: expected a torch.optim.Optimizer, got {result!r}")
    if "lr" not in inspect.signature(result).parameters:
        raise ValueError(f"optimizer: expected one that takes lr, got {name!r}")
    closure = inspect.signature(result.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(f"optimizer: expected one that steps without a closure, got {name!r}")
    return result


def make_optimizer(recipe: dict[str, Any], parameters: list[nn.Parameter], lr: float | None = None) -> Optimizer:
    """The recipe's optimiser of `parameters`, with those of lr, momentum and weight_decay that it takes.

    Args:
        recipe: the fields of a `Recipe`.
        parameters: the parameters to train.
        lr: learning rate; default: the recipe's.
    """
    kind = optimizer_class(recipe["optimizer"])
    values = {"lr": lr or recipe["lr"], "momentum": recipe["momentum"], "weight_decay": recipe["weight_decay"]}
    accepted = inspect.signature(kind).parameters
    return kind(parameters, **{name: value for name, value in values.items() if name in accepted})


def _is_optimizer(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Optimizer)


DEFAULTS = asdict(Recipe())
