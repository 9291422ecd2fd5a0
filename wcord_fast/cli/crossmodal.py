"""`wcord-fast crossmodal`: a teacher of one modality guides an unlabelled student of another (the paper's Table 5).

The teacher sees the luminance L of labelled images, the student the chrominance ab of images of other classes, without
labels. The loss is -lambda1 GCKT + lambda2 LCKT without cross entropy; the negatives are all other images. Then linear
probes are fitted to the student's blocks on the few of its images whose labels are known. The paper has Tiny-ImageNet
and STL-10; here the teacher gets the first half of the data set's classes, the student the second. Digits are grey:
their two modalities are the means over squares of 4x4 pixels and the differences from these means.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
import yaml
from torch import Tensor, nn

from .. import distill
from ..data import Dataset, TestBatches, held_names, source
from ..train.linear_probe import BLOCKS, block_features, probe
from ..train.logs import to_screen
from ..train.meters import NonFiniteLoss
from ..train.tables import text_table
from ..train.views import View, chrominance, coarse, detail, luminance, unscaled
from . import report
from .config import Config
from .options import DryRun, check_fraction, check_paths, check_seeds
from .parser import packaged, parse, read_config, show, usage
from .privileged import PUBLISHED
from .table import mean_and_deviation, over_seeds
from .task_bench import TaskBench, require_no_kd
from .usage import UsageError
from .workbench import Result, data_spec, load_data

log = logging.getLogger("wcord_fast")

SCRATCH, RANDOM = "scratch", "random"
GRID = 4  # pixels per side of the squares whose means are a digit's coarse half


@dataclass
class CrossModalOptions(DryRun):
    """A teacher of the luminance of the first half of the classes guides a student of the chrominance of the second,
    without labels; linear probes are fitted to its four blocks. Rows: random (the untrained student), scratch (trained
    with the known labels), and the methods. Finished runs are skipped and broken ones resumed.

    The modalities of grey images (digits) are the means over squares of 4x4 pixels and the differences from them.

    Attributes:
        seeds: comma-separated; the teacher is trained once, with the first.
        labelled: fraction of the student's training images that have labels, for scratch and the probes.
        output_dir: where runs are kept and resumed, and the table is written.
    """

    seeds: list[int] = field(default_factory=lambda: [0])
    labelled: float = 0.1
    output_dir: Annotated[str, "directory"] = "runs/crossmodal"

    def __post_init__(self) -> None:
        check_paths(self, "output_dir")
        check_seeds(self.seeds)
        check_fraction("labelled", self.labelled)


@dataclass(frozen=True)
class CrossModal:
    """The task's data, all `unscaled`.

    Attributes:
        teacher_data: the first half of the classes, with labels.
        unlabelled: the training images of the second half; every label is 0.
        labelled: the second half with the training images whose labels are known.
        teacher_view, student_view: the two modalities.
    """

    teacher_data: Dataset
    unlabelled: Dataset
    labelled: Dataset
    teacher_view: View
    student_view: View

    def teacher_bench(self, config: Config) -> TaskBench:
        return TaskBench(config, self.teacher_data, self.teacher_view, {"name": "crossmodal teacher"})

    def student_bench(self, config: Config) -> TaskBench:
        """For students without labels."""
        return TaskBench(config, self.unlabelled, self.student_view, {"name": "crossmodal"}, labelled=False)

    def scratch_bench(self, config: Config) -> TaskBench:
        """For the student that is trained with the known labels."""
        return TaskBench(config, self.labelled, self.student_view, {"name": "crossmodal scratch"})


def prepare(config: Config, fraction: float) -> CrossModal:
    """The data of the task: `fraction` of the student's training images keep their labels.

    Raises:
        ValueError: fewer than four classes, a data set that is not held in memory, or a class without a labelled image.
    """
    if not source(config.data).held:
        raise ValueError(f"data: this task holds its images in memory; expected {' or '.join(held_names())}")
    data = load_data(data_spec(config), config.data_dir)
    assert isinstance(data, Dataset)
    if data.num_classes < 4:
        raise ValueError(f"data: expected at least 4 classes, two for each network, got {data.num_classes}")
    data, half = unscaled(data), data.num_classes // 2
    teacher_data, student_data = _with_classes(data, 0, half), _with_classes(data, half, data.num_classes)
    labelled = student_data.limit_train(max(1, round(fraction * len(student_data.train_labels))))
    if len(labelled.train_labels.unique()) < student_data.num_classes:
        raise ValueError(f"labelled: a fraction of {fraction:g} leaves a class without an image")
    unknown = replace(
        student_data,
        classes=("unknown",),
        train_labels=torch.zeros_like(student_data.train_labels),
        test_labels=torch.zeros_like(student_data.test_labels),
    )
    has_colour = data.channels == 3
    views = (luminance(), chrominance()) if has_colour else (coarse(GRID), detail(GRID))
    return CrossModal(teacher_data, unknown, labelled, *views)


def run(argv: list[str]) -> None:
    """Run the task by the options `argv`; print the table and write crossmodal.txt, .md and .csv.

    Raises:
        UsageError: an unknown method or option, or a bad value.
    """
    options, texts = parse("crossmodal", CrossModalOptions, argv)
    config, seeds = _config(texts), options.seeds
    if options.dry_run:
        task_options = {name: value for name, value in vars(options).items() if name != "dry_run"}
        print(show({**config.resolved(), "crossmodal": task_options}))
        return
    task = usage(prepare, config, options.labelled)
    to_screen(config.quiet)
    output_dir = Path(options.output_dir)
    teacher = task.teacher_bench(
        replace(config, seed=seeds[0], output_dir=str(output_dir / "teachers" / config.teacher))
    ).teacher([output_dir])
    rows: dict[str, list[list[float]]] = {name: [] for name in (RANDOM, SCRATCH, *config.methods)}
    failed: dict[str, str] = {}
    for seed in seeds:
        seed_config = replace(config, seed=seed, output_dir=str(output_dir / config.student / f"seed{seed}"))
        for name in rows:
            try:
                rows[name].append(probe_accuracies(task, seed_config, _trained(task, seed_config, name, teacher)))
            except (distill.CannotServe, NonFiniteLoss) as error:
                failed[f"{name}, seed {seed}: {error}"] = ""
                log.warning("%s: %s", name, error)
                continue
            log.info("%s, seed %d: %s", name, seed, ", ".join(f"{v:.2f} %" for v in rows[name][-1]))
    remarks = [_remark(task, config, teacher), *failed, f"ours: {over_seeds(seeds)}."]
    print(_report(output_dir, rows, remarks))


def probe_accuracies(task: CrossModal, config: Config, network: nn.Module) -> list[float]:
    """Accuracy of a linear probe on each block, in percent on the test images, learnt from the labelled images."""
    device, classes = config.torch_device, task.labelled.num_classes
    data = task.labelled.to(device)
    training = replace(data, test_images=data.train_images, test_labels=data.train_labels)  # not augmented
    features = []
    for split in (training, data):
        batches = TestBatches(split, config.eval_batch_size, channels_last=config.channels_last)
        features.append(block_features(network, batches, config.precision))
    (train, y), (test, y_test) = features
    return [probe((x, y), (x_test, y_test), classes) for x, x_test in zip(train, test, strict=True)]


def _trained(task: CrossModal, config: Config, name: str, teacher: Result) -> nn.Module:
    if name == RANDOM:
        return task.student_bench(config).untrained(config.student)
    if name == SCRATCH:
        return (
            task.scratch_bench(replace(config, output_dir=str(config.directory / SCRATCH))).student("ce", None).network
        )
    return task.student_bench(config).student(name, teacher).network


def _config(texts: dict[str, str]) -> Config:
    config = read_config({"config": packaged("crossmodal"), **texts})
    require_no_kd(config.methods)
    if "ce" in config.methods:
        raise UsageError("methods: 'ce' needs labels, and this task has none; the row 'scratch' is the plain student")
    sections: dict[str, distill.Options] = {}
    for section, method_options in config.options.items():  # no method has a cross entropy
        sections[section] = replace(method_options, ce_weight=0.0)
    return replace(config, options=sections)


def _with_classes(data: Dataset, begin: int, end: int) -> Dataset:
    """The images of classes begin .. end - 1, renumbered from 0."""

    def select(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        selected = (labels >= begin) & (labels < end)
        if not bool(selected.any()):
            raise ValueError(f"data: no images of the classes {data.classes[begin]} to {data.classes[end - 1]}")
        return images[selected], labels[selected] - begin

    train_images, train_labels = select(data.train_images, data.train_labels)
    test_images, test_labels = select(data.test_images, data.test_labels)
    return replace(
        data,
        classes=data.classes[begin:end],
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
    )


def _remark(task: CrossModal, config: Config, teacher: Result) -> str:
    return (
        f"Linear probes on {config.student}'s blocks, top-1 % on {len(task.labelled.test_labels):,} test images of "
        f"{task.labelled.num_classes} classes, learnt from {len(task.labelled.train_labels):,} labelled ones. The "
        f"teacher ({config.teacher}, {task.teacher_view.name}) has {teacher.history[-1]['test_top1']:.2f} % on its own "
        f"{task.teacher_data.num_classes} classes; the methods used {len(task.unlabelled.train_labels):,} images "
        f"without labels ({task.student_view.name}). NOT COMPARABLE with the paper's Tiny-ImageNet to STL-10."
    )


def _report(output_dir: Path, rows: dict[str, list[list[float]]], remarks: list[str]) -> str:
    published = yaml.safe_load(PUBLISHED.read_text())["crossmodal"]
    lines: list[report.Line] = []
    for name, by_seed in rows.items():
        paper = published.get(name, [None] * BLOCKS)
        line = {"method": name}
        for block in range(BLOCKS):
            line[f"block {block + 1} %"] = mean_and_deviation([v[block] for v in by_seed]) if by_seed else "n/a"
        paper_cells = ["-" if v is None else f"{v:.2f}" for v in paper]
        lines.append({**line, "paper %": " / ".join(paper_cells) if name in published else "n/a"})
    message = "\n".join(remarks)
    text = f"{text_table(lines)}\n\n{message}\n"
    written = report.write_table(output_dir, "crossmodal", text, lines, message)
    return f"\n{text}\nWritten: {output_dir}/{', '.join(written)}"
