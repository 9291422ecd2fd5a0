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
from .parser import packaged, parse, read_config, show
from .workbench import Workbench

log = logging.getLogger("wcord_fast")

MAIN_JOB = "digits_few"  # the packaged configuration for a command line without --data and --config


@dataclass
class DistillOptions(DryRun):
    """Train students from a teacher and compare them.

    Without --data and --config the packaged job digits_few runs: students trained on 100 of scikit-learn's digits, a
    teacher trained on all of them, five seeds.
    """


def run(argv: list[str]) -> None:
    """Train the teacher, then one student per method; print the table and write table and plot."""
    start = time.perf_counter()
    options, texts = parse("distill", DistillOptions, argv)
    if not {"data", "config"} & texts.keys():
        texts["config"] = packaged(MAIN_JOB)
    config = read_config(texts)
    if options.dry_run:
        print(show(config.resolved()))
        return
    bench = Workbench.start(config)
    student_benches = {seed: bench.of_student(seed) for seed in config.seeds or [config.seed]}
    next(iter(student_benches.values())).require_methods()
    if config.teacher_checkpoint is None and not config.extend:
        epochs = (config.recipe("teacher")["epochs"], config.epochs)
        log.info("%d epochs of the teacher (--teacher-epochs), %d of each student (--epochs)", *epochs)
    teacher = bench.teacher()
    students: report.Students = {method: {} for method in config.methods}
    for seed, student_bench in student_benches.items():
        if config.seeds is not None:
            log.info("students of seed %d", seed)
        for method in config.methods:
            students[method][seed] = student_bench.student(method, teacher)
    remarks = report.notes(students, len(bench.data.test_labels), config.batch_size)
    remarks += report.left_out(len(bench.data.skipped))
    if is_main():
        lines = report.lines_of(students, teacher)
        files = report.write(config.directory, students, teacher, lines, remarks)
        print(f"\n{text_table(lines)}\n\n{textwrap.fill(remarks, 100)}\n")
        print(f"{time.perf_counter() - start:.0f} s in all. Written: {', '.join(map(str, files))}")
        folder = config.directory / ("METHOD" if config.seeds is None else "seedSEED/METHOD")
        print(f"Checkpoints: {folder / checkpoint.CURRENT}")
