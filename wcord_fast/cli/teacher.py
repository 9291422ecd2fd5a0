"""`wcord-fast teacher`: one network, labels only."""

from __future__ import annotations

from ..train import checkpoint
from . import report
from .parser import parse, show, take_dry_run
from .usage import UsageError
from .workbench import Workbench

TEACHERS = {"--epochs": "--teacher-epochs", "--lr": "--teacher-lr"}  # here they can only mean the teacher's


def run(argv: list[str]) -> None:
    """Train the network named by --teacher with labels only."""
    argv = ["=".join([TEACHERS.get(name, name), *value]) for name, *value in (word.split("=", 1) for word in argv)]
    argv, dry = take_dry_run(argv)
    config = parse("teacher", argv, run.__doc__ or "")
    if dry:
        print(show(config.resolved()))
        return
    if config.teacher_checkpoint is not None:
        raise UsageError("--teacher-checkpoint is for distill; this command trains a teacher")
    bench = Workbench.start(config)
    result = bench.teacher()
    print(f"\n{report.text_table(report.lines_of([result]))}\n{report.left_out(len(bench.data.skipped))}")
    print(f"Checkpoint: {config.directory / 'teacher' / checkpoint.CURRENT}")
