"""The protocol that every distillation method follows.

A method is an nn.Module. It is built from a `Pair` (shapes and sizes of both networks and the training set) and its own
options. It is called once per training step with the outputs of both networks. Its parameters (embeddings, regressors)
are optimised with the student's; its buffers (banks) are checkpointed.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ..batch import Batch
from ..nn.kd import KDLoss
from ..nn.options import check_fields, option
from ..ops import checks
from .eval_mode import eval_mode

if TYPE_CHECKING:
    from .stage import Stage


def described(options: Any) -> dict[str, Any]:
    """The options that identify a run, as plain values. An option marked `later` is left out at its default."""
    identifying = {f.name: (getattr(options, f.name), f) for f in fields(options) if f.metadata.get("identifies", True)}
    return {name: v for name, (v, f) in identifying.items() if not (f.metadata.get("later") and v == f.default)}


class Outputs(NamedTuple):
    """The outputs of one network for one batch.

    feats: intermediate features in order, e.g. [B, C, H, W] maps; the last is the penultimate [B, D].
    logits: [B, classes].
    """

    feats: list[Tensor]
    logits: Tensor


class Loss(NamedTuple):
    """A method's terms of the objective, without the cross entropy."""

    value: Tensor  # scalar: the weighted sum
    terms: dict[str, Tensor]  # the unweighted terms, detached, for the logs


@dataclass(frozen=True)
class Pair:
    """The networks, sizes and labels from which a method is built.

    Attributes:
        student_shapes, teacher_shapes: shape of every feature of one image, penultimate last; the teacher's is
            empty when there is no teacher.
        classes, teacher_classes: widths of the student's and the teacher's logits; 0 without a teacher.
        num_data: images in the training set.
        labels: int64 [num_data] on the CPU, or None when they are unknown.
        seed: seed of everything random in the method.
        without_preact: which of "student" and "teacher" take no `preact=True`, which gives features before the
            activation.
    """

    student_shapes: tuple[tuple[int, ...], ...]
    teacher_shapes: tuple[tuple[int, ...], ...]
    classes: int
    teacher_classes: int
    num_data: int
    labels: Tensor | None
    seed: int
    without_preact: tuple[str, ...] = ()

    @property
    def student_width(self) -> int:
        return _width("student", self.student_shapes)

    @property
    def teacher_width(self) -> int:
        return _width("teacher", self.teacher_shapes)


@dataclass
class Options:
    """Options that every method has. A method's own options are in a subclass, with published defaults.

    Attributes:
        ce_weight: weight of the cross entropy with the labels.
        kd_weight: weight of the KD term; "+kd" behind a method's name sets it to 1.
        kd_temperature: temperature of the KD term.
    """

    ce_weight: float = option(1.0, checks.non_negative)
    kd_weight: float = option(0.0, checks.non_negative)
    kd_temperature: float = option(4.0, checks.positive)

    def __post_init__(self) -> None:
        check_ranges(self)
        check_fields(self)


class Method(nn.Module):
    """Cross entropy, plus KD when its weight is not zero; the parent of every other method.

    A subclass adds its terms in `own_loss`, from logits, features and labels, and in `own_parts` if it has several.
    It refuses in its constructor, by ValueError with a full sentence, a pair that it cannot serve.
    """

    stage: Stage | None = None  # set by a method that pre-trains something before the student's own training
    fills_banks = False  # True: `fill_banks` gets every training image before training, then `banks_filled` is called
    scheduled = False  # True: `at_step` is called before every training batch
    features_used: int | None = 0  # how many of the last features `own_loss` takes; None: each by its place in all

    def __init__(self, pair: Pair, options: Options) -> None:
        super().__init__()
        self.options = options
        self.kd = KDLoss(options.kd_temperature)
        self._num_features = {"student": len(pair.student_shapes), "teacher": len(pair.teacher_shapes)}
        if self.compares and not pair.teacher_shapes:
            raise ValueError("teacher: this method compares the student with a teacher, got None")
        if options.kd_weight:
            require_one_label_set("kd_weight: the KD term", pair)

    @property
    def compares(self) -> bool:
        """Whether a teacher is needed, if only before the student's training; False for the plain student."""
        return True

    @property
    def needs_teacher(self) -> bool:
        """Whether a training step needs the teacher's outputs."""
        return self.has_own_loss or self.options.kd_weight > 0

    @property
    def has_own_loss(self) -> bool:
        """Whether the method adds a term to cross entropy and KD."""
        return type(self).own_loss is not Method.own_loss

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Loss:
        """The weighted distillation loss of one batch; in training mode it also advances the method's state.

        Args:
            student: the student's outputs, with gradient.
            teacher: the frozen teacher's outputs; None only if `needs_teacher` is False.
            batch: the images, labels and training-set indices.
        Raises:
            ValueError: the teacher's outputs, or features that the method uses, are missing; outputs, labels and
                indices are not equally many.
        """
        self._require_one_batch(student, teacher, batch)
        value = student.logits.new_zeros((), dtype=torch.float32)
        terms: dict[str, Tensor] = {}
        if teacher is None:
            return Loss(value, terms)
        if self.has_own_loss:
            value, terms = self.own_loss(student, teacher, batch)
        if self.options.kd_weight:
            kd = self.kd(student.logits, teacher.logits)
            value = value + self.options.kd_weight * kd
            terms["kd"] = kd.detach()
        return Loss(value, terms)

    def parts(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """The weighted terms by name, each differentiable, for `--log-grad-norms`. No state changes."""
        self._require_one_batch(student, teacher, batch)
        if teacher is None:
            return {}
        with eval_mode(self):
            terms = self.own_parts(student, teacher, batch) if self.has_own_loss else {}
        if self.options.kd_weight:
            terms["kd"] = self.options.kd_weight * self.kd(student.logits, teacher.logits)
        return terms

    def _require_one_batch(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> None:
        """ValueError unless all that is needed is there, with one row per image. Values are not read."""
        if not self.needs_teacher:
            return
        if teacher is None:
            raise ValueError(f"teacher: expected the teacher's outputs, which {type(self).__name__} needs, got None")
        rows = {"teacher.logits": teacher.logits, "batch.labels": batch.labels, "batch.index": batch.index}
        for side, feats in (("student", student.feats), ("teacher", teacher.feats)):
            wanted = self._num_features[side] if self.features_used is None else self.features_used
            if len(feats) < wanted or (self.features_used is None and len(feats) > wanted):
                least = "" if self.features_used is None else "at least "
                raise ValueError(f"{side}.feats: expected {least}{wanted} features, got {len(feats)}")
            first = len(feats) - wanted
            rows |= {f"{side}.feats[{i}]": feature for i, feature in enumerate(feats[first:], first)}
        size = student.logits.shape[:1]
        for name, values in rows.items():
            if isinstance(values, Tensor) and values.shape[:1] != size:
                shapes = f"{list(student.logits.shape)}, got {list(values.shape)}"
                raise ValueError(f"{name}: expected one row per image, as in student.logits {shapes}")

    def fill_banks(self, student: Outputs, teacher: Outputs, index: Tensor) -> None:
        """Fill the bank rows `index` from the outputs of both networks. They and the method are in eval mode."""
        raise NotImplementedError(f"{type(self).__name__} has no banks")

    def banks_filled(self) -> None:
        """Called once after the last `fill_banks`; in a process group, by every rank after its own images."""

    def at_step(self, done: int, per_epoch: int, epochs: int) -> None:
        """Set the weights that change in training, for the batch that follows `done` ones.

        They must depend on the arguments alone, so that resuming is exact. The device may not be synchronised.

        Args:
            done: training batches before this one, over all epochs.
            per_epoch: batches in an epoch.
            epochs: epochs of the training.
        """

    def probe(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Measurements of one batch for the logs, beside the terms' gradient norms; called in eval mode."""
        return {}

    def own_loss(self, student: Outputs, teacher: Outputs, batch: Batch) -> Loss:
        """The method's own weighted loss and its unweighted terms, detached."""
        raise NotImplementedError(f"{type(self).__name__} has no loss of its own")

    def own_parts(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """The weighted terms of `own_loss` by name; called in eval mode."""
        value, terms = self.own_loss(student, teacher, batch)
        return {next(iter(terms), "own"): value}


def require_one_label_set(subject: str, pair: Pair) -> None:
    """ValueError that begins with `subject`, unless both networks have equally many classes."""
    if pair.classes != pair.teacher_classes:
        raise ValueError(
            f"{subject} needs one label set, but the student has {pair.classes} classes and the teacher "
            f"{pair.teacher_classes}"
        )


def check_ranges(options: Any, skip: Collection[str] = ()) -> None:
    """ValueError for a float of a dataclass that float32 cannot hold, or an integer that int32 cannot.

    Subnormal numbers of float32 are refused too: their reciprocals may overflow.
    """
    float32 = torch.finfo(torch.float32)
    for field in fields(options):
        value = getattr(options, field.name)
        for v in value if isinstance(value, list) else [value]:
            if field.name in skip or isinstance(v, bool):
                continue
            if isinstance(v, int) and abs(v) >= 2**31:
                raise ValueError(f"{field.name}: expected a number below 2^31, got {v}")
            if isinstance(v, float) and v != 0 and math.isfinite(v) and not float32.tiny <= abs(v) <= float32.max:
                raise ValueError(f"{field.name}: expected a number that float32 can hold, got {v}")


def _width(side: str, shapes: tuple[tuple[int, ...], ...]) -> int:
    if not shapes or len(shapes[-1]) != 1:
        shape = list(shapes[-1]) if shapes else "no feature at all"
        raise ValueError(f"{side}: expected its last feature to be a vector [D] per image, got {shape}")
    return shapes[-1][0]
