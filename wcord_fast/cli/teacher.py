"""`wcord-fast teacher`: train one network with labels only."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..models import hf_folder
from ..train import checkpoint
from ..train.tables import text_table
from . import report
from .options import DryRun
from .parser import parse, read_config, show
from .usage import UsageError
from .workbench import Workbench


@dataclass
class TeacherOptions(DryRun):
    """Train the network named by --teacher with labels only."""


def run(argv: list[str]) -> None:
    """Train the teacher, and print its accuracy."""
    options, texts = parse("teacher", TeacherOptions, argv)
    for name in ("epochs", "lr"):  # for this command they are the teacher's
        if name in texts:
            texts[f"teacher_{name}"] = texts.pop(name)
    config = read_config(texts)
    if config.teacher_epochs is None:
        config = replace(config, teacher_epochs=config.epochs)  # so that --extend means this network's
    if hf_folder.is_folder_name(config.teacher):
        raise UsageError(f"--teacher: {config.teacher!r} is a trained network; expected an architecture to train")
    if options.dry_run:
        print(show(config.resolved()))
        return
    if config.teacher_checkpoint is not None:
        raise UsageError("--teacher-checkpoint is for distill; this command trains a teacher")
    bench = Workbench.start(config)
    result = bench.teacher()
    print(f"\n{text_table(report.lines_of({}, result))}\n{report.left_out(len(bench.data.skipped))}")
    print(f"Checkpoint: {config.directory / 'teacher' / checkpoint.CURRENT}")
