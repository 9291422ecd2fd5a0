"""`distill.fit`: the training loop on a user's own networks and `DataLoader`, from Python."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.data import DataLoader

from .. import distill
from ..distill.eval_mode import eval_mode
from ..distill.stage import require_taps
from ..distributed import ranks
from ..models.stages import with_features
from ..ops import checks
from . import checkpoint
from .evaluation import autocast
from .loaders import TestLoader, TrainLoader
from .loggers import DEFAULT, Row, spelled
from .logs import to_screen
from .loop import Run
from .loop import fit as fit_run
from .ranks import is_main, require_alike
from .recipe import Recipe
from .tables import Line, text_table

T = TypeVar("T")
log = logging.getLogger("wcord_fast")
COLUMNS = {  # metric of the history -> title and format of its column; a method's terms follow "ce"
    "epoch": ("epoch", "d"),
    "lr": ("lr", ".3g"),
    "loss": ("loss", ".4f"),
    "ce": ("ce", ".4f"),
    "train_top1": ("train %", ".2f"),
    "test_top1": ("test %", ".2f"),
    "best_top1": ("best %", ".2f"),
    "images_per_s": ("images/s", ",.0f"),
    "loss_share": ("loss share", ".1%"),
}
OWN_OPTIONS = (  # of `fit`, beside the recipe's
    *("test_loader", "method_options", "student_features", "teacher_features", "output_dir", "device", "log_every"),
    *("log_grad_norms", "loggers", "tensorboard", "quiet", "restart", "extend"),
)
LEFT_OUT = ("test_loss", "test_top5", "seconds", "lckt_on_pairs")  # the gradient fractions are left out, too


@dataclass(frozen=True)
class Fitted:
    """A trained student and its history; `print` shows the table.

    Attributes:
        student: the network that `fit` has trained; each of its modules in the mode that it had before.
        method: the distillation method, with its banks and embeddings.
        history: one row per epoch: losses, accuracies in percent, seconds.
        directory: where the run's files are, or None.
    """

    student: nn.Module
    method: distill.Method
    history: list[Row]
    directory: Path | None

    @property
    def table(self) -> list[Line]:
        """The history as lines of text cells, one per epoch."""
        names = [name for name in self.history[-1] if name not in LEFT_OUT and not name.startswith("grad_")]
        terms = {name: (name, ".4f") for name in names if name not in COLUMNS}
        num_leading = list(COLUMNS).index("ce") + 1
        all_columns = [*list(COLUMNS.items())[:num_leading], *terms.items(), *list(COLUMNS.items())[num_leading:]]
        columns = {name: column for name, column in all_columns if name in names}
        return [
            {title: format(row[name], form) if name in row else "-" for name, (title, form) in columns.items()}
            for row in self.history
        ]

    def __str__(self) -> str:
        return text_table(self.table)


def fit(
    student: nn.Module,
    teacher: nn.Module | None,
    loader: DataLoader,
    method: str = "wcord",
    *,
    test_loader: Any = None,
    method_options: Mapping[str, Any] | distill.Options | None = None,
    student_features: str | Sequence[str] = (),
    teacher_features: str | Sequence[str] = (),
    output_dir: str | Path | None = None,
    device: torch.device | str | None = None,
    log_every: int = 50,
    log_grad_norms: bool = False,
    loggers: Sequence[str] = DEFAULT,
    tensorboard: bool = True,
    quiet: bool = False,
    restart: bool = False,
    extend: bool = False,
    **recipe: Any,
) -> Fitted:
    """Train `student` to classify, guided by `teacher`, on the batches of `loader`.

        loader = DataLoader(data.Indexed(train_set), batch_size=64, shuffle=True)
        fitted = distill.fit(student, teacher, loader, "wcord+kd", test_loader=test_loader, epochs=30)
        print(fitted)

    It is the loop of the command `wcord-fast`: a progress bar and a line per epoch, and with `output_dir` a checkpoint
    after every epoch, from which an equal call continues (see docs/driver.md). It seeds the generators of torch, numpy
    and Python. The networks are moved to `device`; the teacher is put in eval mode, its gradients are switched off.
    All of the student trains in train mode, a part that was in eval mode too; parameters with requires_grad=False stay.

    Args:
        student, teacher: any networks with `network(images) -> logits [B, classes]`. Those that take
            `return_features=True` (this package's, `models.Tapped`) are used as they are, others are tapped: see
            `models.with_features`. The teacher is None for "ce", the plain student.
        loader: a DataLoader of a `data.Indexed` set, see `train.loaders.TrainLoader`.
        method: name of a method, see `distill.create`.
        test_loader: batches (images, labels), read after every epoch for `test_top1`.
        method_options: fields of the method's options, or its record.
        student_features, teacher_features: names of the modules whose outputs are the features before the penultimate
            one, where the network is tapped; default: its stages.
        output_dir: folder for checkpoints and logs; None: nothing is written or resumed. A checkpoint of another
            method, recipe, teacher or training set is refused; the initial weights and the transforms are not compared.
        device: device of the run; default: the student's.
        log_every: steps between two readings of the running losses.
        log_grad_norms: log each term's fraction of the gradient, once an epoch.
        loggers: loggers of the epochs' rows: "csv" and "tensorboard" (in `output_dir`), "wandb", "mlflow", or
            the dotted path of a class derived from `train.Logger`.
        tensorboard: False leaves "tensorboard" out of the loggers.
        quiet: no progress bar, warnings only.
        restart, extend: train anew; continue a run of fewer epochs.
        **recipe: fields of `train.Recipe`: epochs, lr, momentum, weight_decay, milestones, seed, ...
    Returns:
        The student with its history.
    Raises:
        TypeError: an argument of a wrong type; an unknown option (the nearest is suggested).
        ValueError: a bad value; no such device; networks that the method cannot serve, or that share weights which
            train; labels beyond the student's classes; on several processes, arguments that differ between them.
        RuntimeError: gradients are switched off; a network that cannot take the images.
        train.checkpoint.CheckpointError, train.files.OutputError, train.meters.NonFiniteLoss: see `train.fit`.
    """
    if not torch.is_grad_enabled():
        raise RuntimeError("fit: gradients are switched off here (torch.no_grad or inference_mode); it needs them")
    checks.known_names("fit", recipe, [*OWN_OPTIONS, *(f.name for f in fields(Recipe))])
    options = Recipe(**recipe)
    for name, network in (("student", student), ("teacher", teacher)):
        if not isinstance(network, nn.Module) and (network is not None or name == "student"):
            raise TypeError(f"{name}: expected a torch.nn.Module, got {type(network).__name__}")
    _require_own_weights(student, teacher)
    method_record = distill.options_from(method, method_options, "method_options")
    base, plus = distill.parse(method)
    name = base + distill.PLUS_KD * plus
    directory = None if output_dir is None else _folder(output_dir)
    checks.integer("log_every", log_every, least=1)
    switches = {"log_grad_norms": log_grad_norms, "tensorboard": tensorboard}
    switches |= {"quiet": quiet, "restart": restart, "extend": extend}
    for switch, value in switches.items():
        checks.boolean(switch, value)
    logger_names = [logger for logger in spelled(loggers) if logger != "tensorboard" or tensorboard]
    target = next(student.parameters(), torch.zeros(0)).device if device is None else _device(device)
    options.require_runnable(target, ranks().world)
    train = TrainLoader(loader, target, options.seed)
    test = None if test_loader is None else TestLoader(test_loader, target)
    images = train.first().images
    modes = [(module, module.training) for module in student.modules()]
    tapped = _prepared("student", student, images, student_features, options.channels_last)
    frozen = None
    if teacher is not None:
        frozen = _prepared("teacher", teacher, images, teacher_features, options.channels_last)
    pair = distill.pair_of(tapped, frozen, images[:2], num_data=train.images, labels=train.labels, seed=options.seed)
    spec = _spec(train, tapped, frozen, name, method_record, options)
    given = {"output_dir": directory is not None, "test_loader": test is not None, "batches": len(train)}
    given |= {"restart": restart, "extend": extend}
    require_alike("fit", given | {f"{part} {key}": value for part in spec for key, value in _items(spec[part])})
    _require_classes(train.labels, pair.classes)
    train.classes = pair.classes
    if test is not None:
        test.classes = pair.classes
    checkpoint.seed_everything(options.seed)
    if test is not None and is_main():  # it alone evaluates
        _require_readable(test, tapped, options.precision)
        checkpoint.seed_everything(options.seed)
    method_module = distill.build(name, pair, method_record).to(target)
    require_taps(method_module, pair)
    checkpoint.seed_everything(options.seed)  # so that training does not depend on how many numbers the method drew
    if frozen is not None:
        frozen.eval().requires_grad_(False)
    if not log.hasHandlers() or any(getattr(handler, "stream", None) is sys.stdout for handler in log.handlers):
        to_screen(quiet)  # else the caller has chosen where logs go
    run = Run(
        name=name,
        directory=directory,
        spec=spec,
        student=tapped,
        method=method_module,
        teacher=frozen if method_module.compares else None,
        train=train,
        test=test,
        log_every=log_every,
        log_grad_norms=log_grad_norms,
        loggers=logger_names,
        quiet=quiet,
        restart=restart,
        extend=extend,
    )
    try:
        history = fit_run(run)
    finally:
        for module, training in modes:
            module.training = training
    return Fitted(student, method_module, history, run.directory)


def _folder(value: str | Path) -> Path:
    """`value` as the path of a folder."""
    return Path(checks.path("output_dir", os.fspath(value) if isinstance(value, os.PathLike) else value))


def _device(value: torch.device | str) -> torch.device:
    """`value` as a device; ValueError if there is none of that name or this machine lacks it."""
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError):
        raise ValueError(f"device: expected 'cpu', 'cuda' or 'cuda:N', got {value!r}") from None
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(f"device: got {value!r}, but this PyTorch ({torch.__version__}) sees {count} CUDA devices")
    return device


def _prepared(
    name: str, network: nn.Module, images: Tensor, features: str | Sequence[str], channels_last: bool
) -> nn.Module:
    """`network` on the device of `images`, returning its features, too."""
    network.to(images.device)
    if channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        return _told(name, images[:3], lambda few: with_features(network, few, features))
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from error


def _told(name: str, images: Tensor, call: Callable[[Tensor], T], loader: str = "loader") -> T:
    """`call(images)`; an error of the network's own layers (other channels, size or dtype) says whose images it got."""
    try:
        return call(images)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        given = f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
        raise RuntimeError(f"{name}: cannot take the {loader}'s images, {given}: {error}") from error


def _require_own_weights(student: nn.Module, teacher: nn.Module | None) -> None:
    """ValueError unless something of the student trains, and the teacher, which is frozen, holds none of it.

    A shared module that is frozen already, such as the teacher's classifier, is fine, and so is a constant buffer.
    """
    if not any(p.requires_grad for p in student.parameters()):
        count = len(list(student.parameters()))
        found = f"but all {count} have requires_grad=False" if count else "got none"
        raise ValueError(f"student: expected parameters that train, {found}")
    if teacher is not None:
        of_teacher = {id(t) for t in (*teacher.parameters(), *teacher.buffers())}
        own: list[tuple[str, Tensor]] = [(name, p) for name, p in student.named_parameters() if p.requires_grad]
        for prefix, module in student.named_modules():
            if isinstance(module, _NormBase):  # whose statistics training changes
                own += module.named_buffers(prefix)
        shared = [name for name, t in own if id(t) in of_teacher]
        if shared:
            raise ValueError(
                f"student: expected weights of its own, but it shares {', '.join(shared[:3])}"
                f"{f' and {len(shared) - 3} more' if len(shared) > 3 else ''} with the teacher, which is frozen; "
                "copy.deepcopy makes a copy, and requires_grad_(False) says that they do not train"
            )


def _require_readable(test: TestLoader, student: nn.Module, precision: str) -> None:
    """Read one test batch and put two of its images through the student, so that no epoch is lost to a bad one.

    What can be read once only, or begins processes that stay, is left until the first epoch has been trained.
    """
    loader = test.loader
    if not isinstance(loader, (DataLoader, list, tuple)) or getattr(loader, "persistent_workers", False):
        return
    own = [
        g
        for g in (getattr(loader, "generator", None), getattr(getattr(loader, "sampler", None), "generator", None))
        if g
    ]
    states = [generator.get_state() for generator in own]
    batch = next(iter(test), None)
    for generator, state in zip(own, states, strict=True):
        generator.set_state(state)
    if batch is None:
        raise ValueError("test_loader: expected at least one batch, got none")
    with eval_mode(student), torch.no_grad(), autocast(batch.images.device, precision):
        _told("student", batch.images[:2], student, "test_loader")


def _items(part: Any) -> list[tuple[str, Any]]:
    return list(part.items()) if isinstance(part, dict) else [("", part)]


def _require_classes(labels: Tensor | None, classes: int) -> None:
    if labels is not None and len(labels) and int(labels.max()) >= classes:
        raise ValueError(f"labels: expected below {classes}, the student's classes, got {int(labels.max())}")


def _spec(
    train: TrainLoader,
    student: nn.Module,
    teacher: nn.Module | None,
    method: str,
    options: distill.Options,
    recipe: Recipe,
) -> dict[str, Any]:
    """The identity of a run, in plain values: a directory's run is resumed if its spec is equal."""
    architecture = type(getattr(student, "network", student)).__name__
    labels = b"" if train.labels is None else train.labels.numpy().tobytes()
    return {
        "role": "student",
        "model": f"{architecture} {checkpoint.fingerprint(student, weights=False)}",
        "data": {"rows": train.images, "labels": sha256(labels).hexdigest()[:16], "batch_size": train.batch_size},
        "method": {"name": method, **distill.described(options)},
        "recipe": recipe.described(),
        **({} if teacher is None else {"teacher": {"weights": checkpoint.fingerprint(teacher)}}),
    }
