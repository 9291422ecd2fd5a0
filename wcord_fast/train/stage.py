"""The pre-training stage of a method that has one: its own epochs, optimiser and checkpoint, resumable like a run."""

from __future__ import annotations

import logging
from contextlib import nullcontext, suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from ..distill.stage import Stage, feature_modules
from ..ops.status import check
from . import checkpoint
from .evaluation import autocast
from .files import locked
from .loggers import Row
from .logs import Progress
from .meters import Meters
from .recipe import make_optimizer

log = logging.getLogger(__name__)

DIRECTORY = "stage"
EPOCH_DIVISOR = 8  # by default a stage has the student's epochs divided by this: 30 for the published 240


def pretrain(run, teacher: nn.Module) -> list[Row]:
    """Run (or resume, or skip) the stage of `run.method`; the student and the method keep its result."""
    stage, options, recipe = run.method.stage, run.method.options, run.recipe
    epochs = options.stage_epochs or max(1, round(recipe["epochs"] / EPOCH_DIVISOR))
    directory = None if run.directory is None else run.directory / DIRECTORY
    if run.extend and not run.restart and options.stage_epochs is None and directory is not None:
        epochs = _saved_epochs(directory) or epochs  # a longer run keeps the stage that it has
    trained_modules = [*stage.modules, *(feature_modules(run.student) if stage.trains_student else ())]
    parameters = [p for module in trained_modules for p in module.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(f"{run.name}: its pre-training stage has nothing to train: all of it is frozen")
    optimizer = make_optimizer(recipe, parameters, options.stage_lr)
    spec = {**run.spec, "stage": {"epochs": epochs, "lr": options.stage_lr or recipe["lr"]}}
    with nullcontext() if directory is None else locked(directory):
        return _pretrain(run, teacher, stage, trained_modules, optimizer, directory, spec)


def _saved_epochs(directory: Path) -> int | None:
    with suppress(checkpoint.CheckpointError):
        return checkpoint.load(directory / checkpoint.CURRENT)["spec"].get("stage", {}).get("epochs")
    return None


def _pretrain(
    run, teacher: nn.Module, stage: Stage, trained_modules, optimizer, directory: Path | None, spec
) -> list[Row]:
    state = None if directory is None or run.restart else checkpoint.load_latest(directory, spec, extend=run.extend)
    history: list[Row] = []
    epochs = spec["stage"]["epochs"]
    if directory is not None and state is not None:
        checkpoint.restore(directory, state, run.student, run.method, optimizer)
        history = state["history"]
    for epoch in range(len(history), epochs):
        history.append(_epoch(run, teacher, stage, trained_modules, optimizer, epoch, epochs))
        log.info("%-10s stage %3d/%d  loss %8.4f", run.name, epoch + 1, epochs, history[-1]["loss"])
        if directory is None:
            continue
        state = {
            "spec": spec,
            "epoch": epoch + 1,
            "student": run.student.state_dict(),
            "method": run.method.state_dict(),
            "optimizer": optimizer.state_dict(),
            "rng": checkpoint.rng_state(),
            "history": history,
        }
        checkpoint.save(directory, state)
    return history


def _epoch(run, teacher, stage: Stage, trained_modules, optimizer, epoch: int, epochs: int) -> Row:
    run.student.eval()
    run.method.eval()
    for module in trained_modules:
        module.train()
    meters = Meters(epoch)
    batches = run.train.whole()  # one process runs the stage, see `loop.fit`
    bar = Progress(batches.epoch(epoch), len(batches), f"{run.name} stage {epoch + 1}/{epochs}", run.quiet)
    for step, (images, _, _) in enumerate(bar):
        device, precision = images.device, run.recipe["precision"]
        with torch.no_grad(), autocast(device, precision):
            teacher_features = _features(teacher, images, stage.preact)
        with autocast(device, precision), torch.set_grad_enabled(stage.trains_student):
            student_features = _features(run.student, images, stage.preact) if stage.trains_student else []
        loss = stage.loss([f.float() for f in student_features], [f.float() for f in teacher_features])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if run.recipe["clip_grad"] is not None:
            nn.utils.clip_grad_norm_(
                [p for group in optimizer.param_groups for p in group["params"]], run.recipe["clip_grad"]
            )
        optimizer.step()
        meters.add(len(images), {"loss": loss})
        if (step + 1) % run.log_every == 0:
            bar.show(meters.means())
            check()
    means = meters.means()
    check()
    return {"epoch": epoch + 1, **means}


def _features(network: nn.Module, images: Tensor, preact: bool) -> list[Tensor]:
    features, _ = network(images, return_features=True, **({"preact": True} if preact else {}))
    return features
