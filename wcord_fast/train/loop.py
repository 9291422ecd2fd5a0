"""The training loop: one network, one objective, one data set, resumable after every epoch."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ..batch import Batch
from ..distill import Method
from ..distributed import ranks
from ..ops import checks
from ..ops.status import check
from . import bank_files, checkpoint
from .average import Average
from .cuda_graph import GraphedStep
from .evaluation import evaluate
from .files import locked
from .fill_banks import fill_banks
from .loggers import DEFAULT, LoggedRun, Loggers, Row, spelled
from .logs import Progress, epoch_line
from .meters import REMEDY, Meters, NonFiniteLoss, Stopwatch
from .network_calls import Forward, compiled, plain
from .ranks import average_statistics, copy_from_main, from_main, is_main, join_meters, require_used, wrap
from .recipe import DEFAULTS, make_optimizer
from .recompute import OPTION, Blocks, blocks_of, checkpointed
from .schedule import announcement, changes_by_step, learning_rate
from .sources import TrainingBatches
from .stage import pretrain
from .step import gradients, micro_batch, train_step

log = logging.getLogger(__name__)

AVERAGED = "student_ema.pt"


@dataclass
class Run:
    """One training run.

    Attributes:
        name: its name on the screen.
        directory: where checkpoint, metrics and logs go; None: nothing is written, and nothing resumed.
        spec: the run's identity, in plain values; a checkpoint of another spec is refused. `spec["recipe"]` is used.
        student: the network to train, on its device.
        method: the objective beside the cross entropy.
        teacher: the frozen network, or None if the method needs none.
        train: the training batches.
        test: the test batches, each (images, labels, index); None: test accuracy is not measured.
        labelled: whether the labels are known; if not, cross entropy and training accuracy are not logged.
        export: name of the file that gets the student's state dict when the run is finished.
        images: the `shape`, `mean` and `std` of the images that the student gets, for the checkpoint; None: those of
            `train`.
        loggers: names of loggers, or dotted paths, see `train.loggers`.
        log_every, log_grad_norms, quiet, restart, extend: see `Config`.
        average: the moving average of the student, if the recipe has `ema`.
        blocks: the blocks that the backward pass runs again, if the recipe has `gradient_checkpointing`.
        network: the student as it is called in training: under DDP if there are several processes.
    """

    name: str
    directory: Path | None
    spec: dict[str, Any]
    student: nn.Module
    method: Method
    teacher: nn.Module | None
    train: TrainingBatches
    test: Iterable[Batch] | None
    labelled: bool = True
    export: str = "student.pt"
    images: dict[str, Any] | None = None
    log_every: int = 50
    log_grad_norms: bool = False
    loggers: Sequence[str] = DEFAULT
    quiet: bool = False
    restart: bool = False
    extend: bool = False
    history: list[Row] = field(default_factory=list)
    network: nn.Module = field(init=False)
    average: Average | None = field(init=False, default=None)
    blocks: Blocks = field(init=False)

    def __post_init__(self) -> None:
        checks.integer("log_every", self.log_every, least=1)
        self.loggers = spelled(self.loggers)
        self.network = self.student
        self.blocks = blocks_of(self.student) if self.spec["recipe"].get(OPTION) else {}

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The fields of a `Recipe` and their values; a field that the spec lacks has its default."""
        return DEFAULTS | self.spec["recipe"]

    @cached_property
    def network_calls(self) -> dict[str, Forward]:
        """The calls of "student" and "teacher" in a step: compiled if the recipe has that option."""
        return compiled(self.networks()) if self.recipe.get("compile") else self.networks()

    @cached_property
    def graphed(self) -> GraphedStep | None:
        """The step as a CUDA graph, if the recipe has that option."""
        if not self.recipe.get("cuda_graph"):
            return None
        return GraphedStep(lambda batch, watch: gradients(self, batch, watch)[0], self.parameters(), self.train)

    def networks(self) -> dict[str, Forward]:
        """The "student" and, if there is one, the "teacher", as functions of the images."""
        student = plain(lambda *args, **kwargs: self.network(*args, **kwargs))  # wrapped anew in every epoch
        result = {"student": checkpointed(student, self.blocks) if self.blocks else student}
        return result if self.teacher is None else result | {"teacher": plain(self.teacher)}

    def parameters(self) -> list[nn.Parameter]:
        """The parameters of the optimiser: the student's and the method's own."""
        parameters = [*self.student.parameters(), *self.method.parameters()]
        return [p for p in parameters if p.requires_grad]


def fit(run: Run) -> list[Row]:
    """Train until the recipe's last epoch, from the directory's checkpoint if there is one; return the history.

    Raises:
        CheckpointError: the directory holds a checkpoint of another run, or only damaged ones.
        OutputError: the directory cannot be written, or another run is at work in it (DirectoryInUse).
        NonFiniteLoss: a loss term became NaN or infinite.
        ValueError: a loss received a bad value (the message names it).
    """
    with ExitStack() as stack:
        if run.directory is not None and is_main():
            stack.enter_context(locked(run.directory))
        if run.train.device.type == "cuda":  # streams, events and graphs are made on the current device
            stack.enter_context(torch.cuda.device(run.train.device))
        return _fit(run)


def _fit(run: Run) -> list[Row]:
    recipe, directory = run.recipe, run.directory
    fresh = run.restart or directory is None or not from_main((directory / checkpoint.CURRENT).exists)
    if run.method.stage is not None and run.teacher is not None and fresh:
        if is_main():  # one process alone: the stage does not depend on their number
            generators = checkpoint.rng_state()
            pretrain(run, run.teacher)
            checkpoint.set_rng_state(generators)  # the student's training does not depend on when the stage was run
        copy_from_main(run.student, run.method)
    optimizer = make_optimizer(recipe, run.parameters())
    run.average = Average(run.student, recipe["ema"]) if recipe["ema"] else None
    resume(run, optimizer)
    first = len(run.history)
    if run.method.fills_banks and run.teacher is not None and not first:
        fill_banks(run, run.teacher)
    if first == recipe["epochs"]:
        loggers_of(run, only=("csv",))  # an interrupted process may not have written its file
        log.info("%s: finished earlier, %d epochs (%s)", run.name, first, directory)
    else:
        with loggers_of(run) as loggers:
            for epoch in range(first, recipe["epochs"]):
                one_epoch(run, optimizer, epoch)
                loggers.write(run.history)
                log.info("%s", epoch_line(run.name, run.history[-1], recipe["epochs"]))
    if directory is not None and is_main():
        checkpoint.save_state_dict(directory / run.export, run.student.state_dict())
        if run.average is not None:
            checkpoint.save_state_dict(directory / AVERAGED, run.average.network.state_dict())
    return run.history


def one_epoch(run: Run, optimizer: torch.optim.Optimizer, epoch: int) -> None:
    """Train, test and checkpoint epoch `epoch`, counted from 0."""
    rate = learning_rate(run.recipe, epoch)
    set_rate(optimizer, rate)
    seed_rank(run.recipe["seed"], epoch)
    run.network = wrap(run.student)  # anew, so that the order of sums over ranks does not depend on restarts
    try:
        losses = train_epoch(run, optimizer, epoch)
    finally:
        # A DDP wrapper that outlives its process group may hang: the group ends with it then, and joins gloo's threads
        # with the GIL held that they wait for (pytorch/pytorch#56297).
        run.network = run.student
    average_statistics(run.student, run.method)
    require_finite_weights(run.student, epoch)
    row = {"epoch": epoch + 1, "lr": rate, **losses}
    if not run.labelled:
        del row["train_top1"], row["ce"]
    if run.test is not None:
        test = run.test
        row |= from_main(lambda: evaluate(run.student, test, run.recipe["precision"]))
        if run.average is not None:
            average = run.average.network
            row["ema_top1"] = from_main(lambda: evaluate(average, test, run.recipe["precision"]))["test_top1"]
        row["best_top1"] = max([row["test_top1"], *(r["best_top1"] for r in run.history if "best_top1" in r)])
    run.history.append(row)
    if run.directory is not None:
        save(run, run.directory, optimizer)


def seed_rank(seed: int, epoch: int) -> None:
    """Seed the generators of one of several processes for epoch `epoch` by its rank; one alone keeps its state.

    Mixup and dropout draw from them. A checkpoint holds rank 0's states only, and others' differ after an uneven batch.
    """
    rank, world = ranks()
    if world > 1:
        checkpoint.seed_everything(((seed * 1_000_003 + epoch) * 65_537 + rank) % 2**63)


def require_finite_weights(student: nn.Module, epoch: int) -> None:
    """NonFiniteLoss if the last step of epoch `epoch` spoilt the student: no loss is computed after it.

    Weights and statistics of normalisation are looked at; another buffer may hold infinity, as a mask does.
    """
    values: dict[str, Any] = dict(student.named_parameters())
    for name, module in student.named_modules():
        if isinstance(module, _NormBase):
            values |= module.named_buffers(name)
    try:
        checkpoint.require_finite(Path("student"), values)
    except checkpoint.CheckpointError as error:
        raise NonFiniteLoss(f"{error} after epoch {epoch + 1}; {REMEDY}") from None


def save(run: Run, directory: Path, optimizer: torch.optim.Optimizer) -> None:
    """Write the checkpoint after an epoch."""
    epoch, images = len(run.history), run.images or run.train.described()
    state = {
        "spec": run.spec,
        "epoch": epoch,
        "step": epoch * len(run.train),
        "student": run.student.state_dict(),
        "method": run.method.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": checkpoint.rng_state(),
        "history": run.history,
        **({} if images is None else {"images": images}),
        **({} if run.average is None else {"average": run.average.state_dict()}),
    }
    bank_files.save(directory, state, run.method)


def loggers_of(run: Run, only: Sequence[str] | None = None) -> Loggers:
    """The loggers of `run`, those in `only` if it is given, in the main process; none in others."""
    chosen = [name for name in run.loggers if only is None or name in only] if is_main() else []
    folder = "" if run.directory is None else f"{run.directory.absolute().parent.name}/"
    return Loggers(chosen, LoggedRun(f"{folder}{run.name}", run.directory, run.spec, tuple(run.history)))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give the optimiser its learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def resume(run: Run, optimizer: torch.optim.Optimizer) -> None:
    """Restore `run` from its directory's checkpoint, if there is one."""
    if run.directory is None or run.restart:
        return
    state = bank_files.load_latest(run.directory, run.spec, run.method, run.extend)
    if state is None:
        return
    saved_recipe = DEFAULTS | state["spec"]["recipe"]
    if saved_recipe["epochs"] < run.recipe["epochs"]:
        message = announcement(saved_recipe, run.recipe, state["epoch"], run.method.scheduled)
        log.warning("%s: %s (%s)", run.name, message, run.directory)
    checkpoint.restore(run.directory, state, run.student, run.method, optimizer)
    if run.average is not None:
        with checkpoint.usable(run.directory):
            run.average.load_state_dict(state["average"])
    run.history = state["history"]
    if state["epoch"] < run.recipe["epochs"]:
        log.info("%s: going on after epoch %d (%s)", run.name, state["epoch"], run.directory)


def train_epoch(run: Run, optimizer: torch.optim.Optimizer, epoch: int) -> Row:
    """Train for one epoch; return mean losses, training accuracy and speed."""
    run.student.train()
    run.method.train()
    meters, watch = Meters(epoch), Stopwatch(run.train.device)
    fractions: dict[str, float] = {}
    start = time.perf_counter()
    title = f"{run.name} {epoch + 1}/{run.recipe['epochs']}"
    bar = Progress(run.train.epoch(epoch), len(run.train), title, run.quiet)
    by_step = changes_by_step(run.recipe)
    for step, batch in enumerate(bar):
        if by_step:
            set_rate(optimizer, learning_rate(run.recipe, epoch, (step + 1) / len(run.train)))
        measure_gradients = run.log_grad_norms and step == len(run.train) // 2
        place = micro_batch(step, len(run.train), run.recipe["accumulate"])
        if run.method.scheduled:
            run.method.at_step(epoch * len(run.train) + step, len(run.train), run.recipe["epochs"])
        fractions |= train_step(run, optimizer, batch, meters, watch, measure_gradients, place, run.train.weight(step))
        if step + 1 == min(run.recipe["accumulate"], len(run.train)):
            require_used(run.network)
        if (step + 1) % run.log_every == 0:
            bar.show(meters.means())
            watch.sample()
            check()
    join_meters(meters)
    means = meters.means()
    check()
    seconds = time.perf_counter() - start
    means["train_top1"] *= 100
    watch.sample()
    loss_share = watch.seconds() / seconds if run.method.needs_teacher else 0.0
    return means | fractions | {"images_per_s": meters.count / seconds, "loss_share": loss_share, "seconds": seconds}
