"""`wcord-fast distill`: a teacher, then one student per method, then a table and a plot."""

from __future__ import annotations

import textwrap
import time

from ..train import checkpoint
from ..train.ranks import is_main
from . import report
from .parser import parse, show, take_dry_run
from .workbench import Workbench


def run(argv: list[str]) -> None:
    """Teacher, then one student per method, then the table and the plot."""
    began = time.perf_counter()
    argv, dry = take_dry_run(argv)
    config = parse("distill", argv, "Train students from a teacher and compare them.")
    if dry:
        print(show(config.resolved()))
        return
    bench = Workbench.start(config)
    bench.require_methods()
    teacher = bench.teacher()
    students = [bench.student(method, teacher) for method in config.methods]
    results = [*students, teacher]
    lines = report.lines_of(results)
    remarks = report.notes(results, len(bench.data.test_labels), config.batch_size)
    remarks += report.left_out(len(bench.data.skipped))
    if is_main():
        files = report.write(config.directory, results, lines, remarks)
        print(f"\n{report.text_table(lines)}\n\n{textwrap.fill(remarks, 100)}\n")
        print(f"{time.perf_counter() - began:.0f} s in all. Written: {', '.join(map(str, files))}")
        print(f"Checkpoints: {', '.join(str(config.directory / r.name / checkpoint.CURRENT) for r in students)}")
