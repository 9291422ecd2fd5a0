"""Privileged distillation (the paper's Tables 6 and 7): the teacher has other labels and sees more pixels.

A frozen teacher, trained on its own label set at `image_size`, guides a student of two classes that sees
`student_size` pixels of the same image. There is no KD term, since the label sets differ. The measure is the area under
the ROC curve on the test images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..data import Dataset, held_names, source
from ..models import least_size
from ..ops import checks
from ..train.evaluation import predictions
from ..train.metrics import auc
from ..train.views import resized, unscaled
from .config import Config
from .task_bench import TaskBench
from .workbench import Result, data_spec, load_data

PUBLISHED = Path(__file__).parent / "published_transfers.yaml"
SHRINK = 4  # default ratio of the teacher's pixels per side to the student's


@dataclass(frozen=True)
class Privileged:
    """The task's data.

    Attributes:
        teacher_data: the teacher's images, with all their classes.
        student_data: the student's images, with two classes: 1 is the positive class, 0 the rest.
        image_size, student_size: pixels per side that the two networks see.
    """

    teacher_data: Dataset
    student_data: Dataset
    image_size: int
    student_size: int

    def teacher_bench(self, config: Config) -> TaskBench:
        """For training or loading the teacher."""
        view = resized(self.image_size, self.teacher_data, least_size(config.teacher))
        return TaskBench(config, unscaled(self.teacher_data), view, {"name": "privileged teacher"})

    def student_bench(self, config: Config) -> TaskBench:
        """For training students of `config.student`."""
        view = resized(self.student_size, self.student_data, least_size(config.student))
        task = {"name": "privileged", "positive": self.student_data.classes[1]}
        return TaskBench(config, unscaled(self.student_data), view, task)


def prepare(config: Config, positive: str | None, student_size: int | None, teacher_data_dir: str | None) -> Privileged:
    """The data of the task.

    Args:
        config: names the student's data; the teacher's are the same images unless `teacher_data_dir` is given.
        positive: the class that the student separates from all others; default: "8" of the digits, the second of
            two classes.
        student_size: default: a quarter of the image size.
        teacher_data_dir: another folder of images, for the teacher.
    Raises:
        ValueError: an unknown class, or None where the data set has no default; a data set not held in memory.
    """
    if not source(config.data).held:
        raise ValueError(f"data: this task holds its images in memory; expected {' or '.join(held_names())}")
    size = config.image_size or source(config.data).image_size
    student_pixels = (
        max(1, size // SHRINK) if student_size is None else checks.integer("student_size", student_size, least=1)
    )
    if teacher_data_dir is not None and config.data != "folder":
        raise ValueError(f"teacher_data_dir: goes with the data set 'folder', got {config.data!r}")
    spec = data_spec(config)
    student_data = load_data({**spec, "image_size": max(size, student_pixels)}, config.data_dir)
    teacher_spec = {**spec, "image_size": size, "limit_train": None if teacher_data_dir else config.limit_train}
    shared = teacher_data_dir is None and size >= student_pixels
    teacher_data = student_data if shared else load_data(teacher_spec, teacher_data_dir or config.data_dir)
    assert isinstance(student_data, Dataset) and isinstance(teacher_data, Dataset)
    if student_data.channels != teacher_data.channels:
        raise ValueError(
            f"teacher_data_dir: expected images of {student_data.channels} channels, got {teacher_data.channels}"
        )
    return Privileged(
        teacher_data, one_against_the_rest(student_data, positive or source(config.data).positive), size, student_pixels
    )


def one_against_the_rest(data: Dataset, positive: str | None) -> Dataset:
    """`data` with the labels 1 for the class `positive` and 0 for all others."""
    if positive is None:
        positive = data.classes[1] if data.num_classes == 2 else None
    if positive is None:
        raise ValueError(
            f"positive: the student needs one of the {data.num_classes} classes: {_first_names(data.classes)}"
        )
    index = data.classes.index(checks.choice("positive", positive, data.classes))
    splits = {"training": data.train_labels == index, "test": data.test_labels == index}
    for split, is_positive in splits.items():
        if len(is_positive.unique()) < 2:
            kind = "no image" if not bool(is_positive.any()) else "every image"
            raise ValueError(f"positive: {kind} of the {split} split is a {positive!r}; expected some of both kinds")
    train_labels, test_labels = (is_positive.to(torch.int64) for is_positive in splits.values())
    return replace(data, classes=(f"not {positive}", positive), train_labels=train_labels, test_labels=test_labels)


def measured_auc(bench: TaskBench, result: Result) -> float:
    """The area under the ROC curve, in percent, on the test images."""
    return auc(*predictions(result.network, bench.test, bench.config.precision))


def positives(data: Dataset) -> str:
    """The number of positive images in each split, for the report."""
    counts = [int(np.count_nonzero(labels.cpu().numpy())) for labels in (data.train_labels, data.test_labels)]
    return (
        f"{data.classes[1]!r} against the rest: {counts[0]:,} of {len(data.train_labels):,} training and "
        f"{counts[1]:,} of {len(data.test_labels):,} test images are positive"
    )


def _first_names(names: tuple[str, ...]) -> str:
    return ", ".join(names[:10]) + (" ..." if len(names) > 10 else "")
