"""`wcord-fast distill`: a teacher, then one student per method, then a table and a plot."""

from __future__ import annotations

import logging
import textwrap
import time
from dataclasses import dataclass

from ..train import checkpoint
from ..train.ranks import is_main
from ..train.tables import text_table
from . import report
from .options import DryRun
from .parser import parse, read_config, show
from .workbench import Workbench

log = logging.getLogger("wcord_fast")


@dataclass
class DistillOptions(DryRun):
    """Train students from a teacher and compare them."""


def run(argv: list[str]) -> None:
    """Teacher, then one student per method, then the table and the plot."""
    began = time.perf_counter()
    own, given = parse("distill", DistillOptions, argv)
    config = read_config(given)
    if own.dry_run:
        print(show(config.resolved()))
        return
    bench = Workbench.start(config)
    bench.require_methods()
    if config.teacher_checkpoint is None:
        epochs = (config.recipe("teacher")["epochs"], config.epochs)
        log.info("%d epochs of the teacher (--teacher-epochs), %d of each student (--epochs)", *epochs)
    teacher = bench.teacher()
    students = [bench.student(method, teacher) for method in config.methods]
    results = [*students, teacher]
    lines = report.lines_of(results)
    remarks = report.notes(results, len(bench.data.test_labels), config.batch_size)
    remarks += report.left_out(len(bench.data.skipped))
    if is_main():
        files = report.write(config.directory, results, lines, remarks)
        print(f"\n{text_table(lines)}\n\n{textwrap.fill(remarks, 100)}\n")
        print(f"{time.perf_counter() - began:.0f} s in all. Written: {', '.join(map(str, files))}")
        print(f"Checkpoints: {', '.join(str(config.directory / r.name / checkpoint.CURRENT) for r in students)}")
