"""The paper's whole recipe on CIFAR-100, resnet32x4 to resnet8x4: plain, KD, CRD, WCoRD as published and as tuned.

    python -m bench recipe --data-dir DIR --work FOLDER --device cuda
    python -m bench recipe --dry-run

Trains the teacher, then every student with every seed, and prints the paired differences at the end. The command may be
repeated: it skips finished runs, and resumes an interrupted run from its last epoch. --dry-run trains nothing. It
prints the finished runs, the cost of a run, and the commands.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import accuracy
from bench.accuracy_variants import TUNED, VARIANTS
from bench.report_accuracy import differences_table
from bench.report_tables import table
from bench.results_file import RESULTS, read
from wcord_fast import models

TEACHER, STUDENT = "resnet32x4", "resnet8x4"
IMAGES, TEST_IMAGES, CLASSES, IMAGE_SIZE = 50_000, 10_000, 100, 32
BATCH = 64  # the driver's default
RECIPE = ("plain", "KD", "CRD", "WCoRD", TUNED)


def flops(run: Callable[[], object]) -> int:
    """Floating-point operations of the products and convolutions in a call. A multiply-add counts as two."""
    counter = FlopCounterMode(display=False)
    with counter:
        run()
    return counter.get_total_flops()


def image_flops(name: str) -> tuple[int, int]:
    """Operations of a network for one image: forward, and forward with backward."""
    network, image = models.create(name, num_classes=CLASSES).eval(), torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE)
    with torch.no_grad():
        forward = flops(lambda: network(image))
    return forward, flops(lambda: network(image).sum().backward())


def costs(epochs: int, images: int) -> dict[str, float]:
    """Operations of one run, by name: "teacher" and each variant. Those of the losses are not counted."""
    teacher_forward, teacher_both = image_flops(TEACHER)
    student_forward, student_both = image_flops(STUDENT)
    result = {"teacher": epochs * (images * teacher_both + TEST_IMAGES * teacher_forward)}
    for variant in RECIPE:
        teacher_cost = 0 if VARIANTS[variant][0] == "ce" else teacher_forward
        result[variant] = epochs * (images * (student_both + teacher_cost) + TEST_IMAGES * student_forward)
    return result


def parse(arguments: list[str]) -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m bench recipe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--data-dir", default="DIR", help="CIFAR-100: the folder of the python pickles, or an .npz")
    p.add_argument("--work", type=Path, default=Path("FOLDER"), help="folder of the runs")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    p.add_argument("--variants", nargs="+", choices=RECIPE, default=list(RECIPE))
    p.add_argument("--epochs", type=int, default=240)
    p.add_argument("--images", type=int, default=IMAGES)
    p.add_argument("--device", default="cuda")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--out", type=Path, default=RESULTS / "full")
    p.add_argument("--dry-run", action="store_true")
    p.add_argument("--step-ms", type=float, default=10.0, help="time of a training step, for the hours of --dry-run")
    options = p.parse_args(arguments)
    if not options.dry_run and (options.data_dir == "DIR" or options.work == Path("FOLDER")):
        p.error("--data-dir and --work: expected both, or --dry-run")
    return options


def commands(o: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The command that trains the teacher, and the arguments of `bench accuracy` for the students."""
    home = o.work / "teacher_run"
    teacher = {
        "data": "cifar100", "data-dir": o.data_dir, "limit-train": o.images, "teacher": TEACHER, "epochs": o.epochs,
        "seed": o.seeds[0], "threads": o.threads, "output-dir": home, "tensorboard": "false", "channels-last": "true",
        "quiet": "true", "device": o.device,
    }  # fmt: skip
    students = {
        "data-dir": o.data_dir, "teacher": TEACHER, "teacher-checkpoint": home / "teacher" / "teacher.pt",
        "student": STUDENT, "images": o.images, "epochs": o.epochs, "work": o.work, "threads": o.threads,
        "precision": "fp32", "device": o.device, "out": o.out,
    }  # fmt: skip
    teacher_words, student_words = (
        [word for k, v in options.items() for word in (f"--{k}", str(v))] for options in (teacher, students)
    )
    return teacher_words, [*student_words, "--seeds", *map(str, o.seeds), "--variants", *o.variants]


def plan(o: argparse.Namespace) -> str:
    """The text of --dry-run: for each kind of run its steps, operations and hours, and how many runs are done."""
    rows = [
        r for r in read("accuracy", o.out) if (r["student"], r["images"], r["epochs"]) == (STUDENT, o.images, o.epochs)
    ]
    steps = o.epochs * -(-o.images // BATCH)
    hours = steps * o.step_ms / 3.6e6
    trained = (o.work / "teacher_run" / "teacher" / "teacher.pt").exists()
    lines, left = [], 0
    for name, operations in costs(o.epochs, o.images).items():
        if name not in ("teacher", *o.variants):
            continue
        done = {r["seed"]: r["seconds"] for r in rows if r["variant"] == name and r["seed"] in o.seeds}
        count, total = (int(trained), 1) if name == "teacher" else (len(done), len(o.seeds))
        left += total - count
        measured = f"{sum(done.values()) / len(done) / 3600:.2f}" if done else "-"
        lines.append([name, f"{count} of {total}", f"{steps:,}", f"{operations / 1e15:.1f}", f"{hours:.2f}", measured])
    head = ["run", "done", "steps a run", "PFLOP a run", f"hours a run at {o.step_ms:g} ms a step", "measured hours"]
    teacher_words, student_words = commands(o)
    return (
        table(head, lines)
        + f"\n{left} runs are left: {left * hours:.1f} hours at {o.step_ms:g} ms a step, which is assumed: "
        + "`python -m bench step --device cuda` measures it.\n\n"
        + f"wcord-fast teacher {shlex.join(teacher_words)}\npython -m bench accuracy {shlex.join(student_words)}\n"
    )


def main(arguments: list[str]) -> int:
    o = parse(arguments)
    if o.dry_run:
        print(plan(o), end="")
        return 0
    teacher_words, student_words = commands(o)
    subprocess.run([sys.executable, "-m", "wcord_fast", "teacher", *teacher_words], check=True)
    accuracy.main(student_words)
    rows = read("accuracy", o.out)
    if any(row["variant"] == "plain" for row in rows):
        print(differences_table(rows))
    return 0
