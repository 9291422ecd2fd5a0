"""The driver's configuration: typed fields with the published recipe as defaults.

A method's options (`wcord.lambda_gckt`, ...) are the dataclasses of `wcord_fast.distill`, one section each.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from .. import data as datasets
from .. import distill, models
from ..data.transforms import Transforms
from ..models import hf_folder
from ..ops import checks
from ..train import loggers
from ..train.recipe import Recipe
from .options import check_paths, check_seeds, devices, file_name

PRETRAINED = "pretrained"  # instead of a file: the pretrained weights of the network's library


def _default_options() -> dict[str, distill.Options]:
    return {section: kind() for section, kind in distill.sections().items()}


def method_names() -> list[str]:
    """The methods, with and without a KD term."""
    with_kd = [name + distill.PLUS_KD for name in distill.names() if name != "kd"]
    return [*distill.names(), *with_kd]


@dataclass
class Config(Recipe):
    """Options of the commands that train: data, networks, recipe, and the folder of the results.

    Attributes:
        data: data set: "digits" (embedded), "cifar10", "cifar100", "folder" (in memory) or "imagenet" (a folder read as
            needed), or the dotted path of a function that loads one.
        data_dir: where its files are.
        image_size: height and width of the images, for data sets that offer a choice.
        limit_train: train on this many images only, every class in proportion.
        limit_student: train the students on this many of these images only; the teacher is trained on all of them.
        transforms: applied to a training image after crop and mirror: "v2:RandAugment(num_ops=2)+RandomErasing(p=0.25)"
            of torchvision.transforms.v2, or the dotted path of a function from uint8 [C, H, W] to uint8 [C, H, W].
        skip_corrupt: leave out unreadable image files ("folder" and "imagenet"; for "imagenet" all files are read once
            to find them).
        teacher: name of the teacher's architecture; "timm:NAME", "torchvision:NAME" or "hf:NAME" for a library's.
        student: name of the student's architecture, likewise.
        teacher_checkpoint: use this trained teacher (a checkpoint, a run's directory or a state dict).
        init_student: initial weights of the students: a file or run as for teacher_checkpoint, which must have every
            weight, or "pretrained" for the weights of the student's library.
        init_teacher: initial weights of a teacher that is trained here, likewise.
        methods: comma-separated distillation methods; "ce" is the plain student, "+kd" adds a KD term.
        seeds: comma-separated seeds; every student is trained once with each. Default: `seed`, which is also the
            teacher's.
        teacher_epochs: epochs of the teacher; default: epochs (the packaged file of the digits has 30).
        batch_size: images per step.
        eval_batch_size: images per forward pass when testing.
        teacher_lr: learning rate of the teacher; default: lr.
        output_dir: where runs are kept and resumed; default: runs/DATA_TEACHER_STUDENT.
        device: "auto", "cpu", "cuda" or "cuda:1".
        threads: CPU threads; default: PyTorch's.
        log_every: steps between two readings of the running losses (an epoch's only synchronisations).
        log_grad_norms: once an epoch, log each loss term's fraction of the gradient at the penultimate feature.
        loggers: comma-separated loggers of the epochs' rows: csv, tensorboard, wandb, mlflow, or the dotted path of a
            logger's class.
        tensorboard: false leaves tensorboard out of the loggers.
        quiet: no progress bar, warnings only.
        restart: train anew even if the output directory holds an earlier run.
        extend: continue an earlier run of fewer epochs, with the schedule of the new number of epochs.
        options: the methods' own options, one section each.
    """

    data: Annotated[str, datasets.names] = "digits"
    data_dir: Annotated[str | None, "directory"] = None
    image_size: int | None = None
    limit_train: int | None = None
    limit_student: int | None = None
    transforms: str | None = None
    skip_corrupt: bool = False
    teacher: Annotated[str, models.names] = "resnet32x4"
    student: Annotated[str, models.names] = "resnet8x4"
    teacher_checkpoint: Annotated[str | None, "file"] = None
    init_student: Annotated[str | None, "file"] = None
    init_teacher: Annotated[str | None, "file"] = None
    methods: Annotated[list[str], method_names] = field(default_factory=lambda: ["ce", "wcord"])
    seeds: list[int] | None = None
    teacher_epochs: int | None = None
    batch_size: int = 64
    eval_batch_size: int = 500
    teacher_lr: float | None = None
    output_dir: Annotated[str | None, "directory"] = None
    device: Annotated[str, devices] = "auto"
    threads: int | None = None
    log_every: int = 50
    log_grad_norms: bool = False
    loggers: Annotated[list[str], loggers.names] = field(default_factory=lambda: list(loggers.DEFAULT))
    tensorboard: bool = True
    quiet: bool = False
    restart: bool = False
    extend: bool = False
    options: dict[str, distill.Options] = field(default_factory=_default_options)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.data = datasets.spelled(self.data, "data")
        for name in ("batch_size", "eval_batch_size", "log_every"):
            checks.integer(name, getattr(self, name), least=1)
        for name in ("teacher_epochs", "image_size", "limit_train", "limit_student", "threads"):
            if getattr(self, name) is not None:
                checks.integer(name, getattr(self, name), least=1)
        if self.seeds is not None:
            check_seeds(self.seeds)
        check_paths(self, "data_dir", "teacher_checkpoint", "init_student", "init_teacher", "output_dir")
        if self.init_teacher and self.teacher_checkpoint:
            raise ValueError("init_teacher: expected a teacher that is trained here, but teacher_checkpoint names one")
        if hf_folder.is_folder_name(self.teacher) and (self.init_teacher or self.teacher_checkpoint):
            raise ValueError(f"teacher: {self.teacher!r} is a trained network; expected no other weights for it")
        most_threads = max(256, 4 * (os.cpu_count() or 1))
        if self.threads is not None and self.threads > most_threads:
            raise ValueError(f"threads: expected at most {most_threads} on this machine, got {self.threads}")
        if self.teacher_lr is not None:
            checks.positive("teacher_lr", self.teacher_lr)
        self.require_runnable(require_device(self.device), 1)
        if self.extend and self.restart:
            raise ValueError(
                "extend: goes on with an earlier run, which restart=True starts over; expected one of them"
            )
        if self.transforms is not None:
            Transforms(self.transforms)
        self.methods = spelled_methods(self.methods)
        try:
            self.loggers = loggers.spelled(self.loggers)
        except ImportError as error:
            raise ValueError(str(error)) from None
        for side in ("teacher", "student"):
            name = models.spelled(require_architecture(side, getattr(self, side)))
            setattr(self, side, name)
            if getattr(self, f"init_{side}") == PRETRAINED and ":" not in name:
                raise ValueError(f"init_{side}: expected a file; {name!r} has no weights of a library")

    @property
    def directory(self) -> Path:
        default_name = "_".join(map(file_name, (self.data, self.teacher, self.student)))
        return Path(self.output_dir or f"runs/{default_name}")

    def of_student(self, seed: int) -> Config:
        """The configuration of the students of one seed: their images, seed and folder."""
        folder = self.directory if self.seeds is None else self.directory / f"seed{seed}"
        images = self.limit_train if self.limit_student is None else self.limit_student
        return replace(self, seed=seed, seeds=None, limit_train=images, limit_student=None, output_dir=str(folder))

    @property
    def chosen_loggers(self) -> list[str]:
        """The loggers, without tensorboard if `tensorboard` is False."""
        return [name for name in self.loggers if name != "tensorboard" or self.tensorboard]

    @property
    def torch_device(self) -> torch.device:
        return require_device(self.device)

    def recipe(self, role: Literal["teacher", "student"]) -> dict[str, Any]:
        """The training recipe of one network; a run is resumed only with an equal recipe."""
        result = self.described() | {"batch_size": self.batch_size}
        if self.transforms is not None:
            result["transforms"] = self.transforms
        if role == "teacher":
            result |= {"epochs": self.teacher_epochs or self.epochs, "lr": float(self.teacher_lr or self.lr)}
        return result

    def method_options(self, name: str) -> distill.Options:
        """The options with which the method `name` runs under this configuration."""
        base, _ = distill.parse(name)
        return distill.options_for(name, self.options.get(distill.METHODS[base].section or ""))

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, as in a YAML file."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "options"}
        return plain | {section: asdict(options) for section, options in self.options.items()}

    def resolved(self) -> dict[str, Any]:
        """`as_dict` with derived values filled in; a value that is still null depends on the data set."""
        filled = {
            "teacher_epochs": self.teacher_epochs or self.epochs,
            "teacher_lr": self.teacher_lr or self.lr,
            "output_dir": str(self.directory),
        }
        return self.as_dict() | filled


def from_dict(values: dict[str, Any]) -> Config:
    """A Config from nested plain values, as in a YAML file; a missing one takes its default.

    Raises:
        ValueError, TypeError: a bad value; the message begins with the field's name.
    """
    sections = distill.sections()
    plain = {k: v for k, v in values.items() if k not in sections}
    options = {}
    for section, kind in sections.items():
        section_values = values.get(section) or {}
        if not isinstance(section_values, dict):
            raise ValueError(f"{section}: expected options as NAME: VALUE, got {section_values!r}")
        try:
            options[section] = kind(**section_values)
        except (ValueError, TypeError) as error:
            raise type(error)(f"{section}.{error}") from None
    return Config(**plain, options=options)


def spelled_methods(methods: Any) -> list[str]:
    """Method names in their canonical spelling; ValueError for an empty list, an unknown name or a repeated one."""
    if not isinstance(methods, list) or not methods:
        raise ValueError(f"methods: expected at least one of {', '.join(distill.names())}, got {methods!r}")
    result = []
    for name in methods:
        try:
            base, with_kd = distill.parse(name)
        except (ValueError, TypeError) as error:
            raise ValueError(f"methods: {str(error).removeprefix('method: ')}") from None
        result.append(base + ("+kd" if with_kd else ""))
    repeated = {name for name in result if result.count(name) > 1}
    if repeated:
        raise ValueError(f"methods: {', '.join(sorted(repeated))} is named twice")
    return result


def require_architecture(option: str, name: str) -> str:
    """`name`; ValueError, beginning with `option`, if the network is unknown or its library missing."""
    try:
        models.require_known(name)
    except (ImportError, TypeError, ValueError) as error:
        raise ValueError(f"{option}: {str(error).removeprefix('name: ')}") from None
    return name


def require_device(name: str) -> torch.device:
    """The device "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:N"; ValueError if this machine lacks it."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected 'auto', 'cpu', 'cuda' or 'cuda:N', got {name!r}")
    if device.type == "cpu" and device.index:
        raise ValueError(f"device: expected 'auto', 'cpu', 'cuda' or 'cuda:N', got {name!r}")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(f"device: got {name!r}, but this PyTorch ({torch.__version__}) sees {count} CUDA devices")
    return device
