"""One training step: forward passes, gradients in two parts, the optimiser; and each term's fraction of the gradient.

The distillation loss is differentiated at detached copies of the student's outputs. Then one backward pass of the
network takes these gradients and that of the cross entropy. The sum equals that of one joint backward pass, and the
time of the loss can be measured in every step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distill import Batch, Method, Outputs
from ..distill.eval_mode import eval_mode
from .evaluation import autocast
from .meters import Meters, Stopwatch, Watch
from .mix import Blend, mix
from .ranks import average_gradients, sync_if

if TYPE_CHECKING:
    from .loop import Run


LABELLED = "labelled"  # beside a batch's means: the number of its images with a label


class MicroBatch(NamedTuple):
    """A batch's place in the group of batches that make one optimiser step."""

    first: bool
    last: bool
    fraction: float  # the batch's weight in the group's loss


def micro_batch(step: int, steps: int, accumulate: int) -> MicroBatch:
    """The place of batch `step` (from 0) of an epoch of `steps`; an epoch's last group may be smaller."""
    begin = step - step % accumulate
    size = min(accumulate, steps - begin)
    return MicroBatch(step == begin, step == begin + size - 1, 1 / size)


def train_step(
    run: Run,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    meters: Meters,
    watch: Stopwatch,
    measure_gradients: bool,
    place: MicroBatch,
    weight: float = 1.0,
) -> dict[str, float]:
    """Take one batch, and the optimiser's step if the batch is the last of its group. Nothing synchronises.

    Args:
        run: has the networks and the method.
        optimizer: the optimiser of `run.parameters()`.
        batch: this process' part of the mini-batch.
        meters, watch: receive the losses and the time of the distillation loss.
        measure_gradients: whether to measure each term's fraction of the gradient.
        place: the batch's place in its group.
        weight: weight of this process' part of the batch, see `TrainingBatches.weight`.
    Returns:
        The gradient's fractions by name; empty unless `measure_gradients`.
    """
    if place.first:
        optimizer.zero_grad(set_to_none=True)
    fractions: dict[str, float] = {}
    blend = None
    if run.recipe["mixup"] or run.recipe["cutmix"]:
        batch, blend = mix(batch, run.recipe["mixup"], run.recipe["cutmix"])
    if run.graphed is not None and not measure_gradients:
        values = run.graphed(batch, watch)
    else:
        values, fractions = gradients(
            run, batch, watch, meters, measure_gradients, place.fraction * weight, place.last, blend
        )
    if place.last:
        average_gradients(run.method.parameters())
        if run.recipe["clip_grad"] is not None:
            nn.utils.clip_grad_norm_(run.parameters(), run.recipe["clip_grad"])
        optimizer.step()
        if run.average is not None:
            run.average.update()
    means = {name: value for name, value in values.items() if name != LABELLED}
    meters.add(len(batch.labels), means, values[LABELLED])
    return fractions


def gradients(
    run: Run,
    batch: Batch,
    watch: Watch,
    meters: Meters | None = None,
    measure_gradients: bool = False,
    fraction: float = 1.0,
    last: bool = True,
    blend: Blend | None = None,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Add the gradients of one batch's objective, times `fraction`, to those of the parameters.

    Args:
        run, batch, watch, meters, measure_gradients: see `train_step`.
        fraction: the batch's weight in the loss of its group.
        last: whether the batch is the last of its group; then the processes exchange the network's gradients.
        blend: the second labels of a mixed batch.
    Returns:
        The values for the meters, and each term's fraction of the gradient (empty unless `measure_gradients`).
    """
    device, precision = batch.images.device, run.recipe["precision"]
    # Measuring differentiates several times, which a compiled network does not allow.
    calls = run.networks() if measure_gradients else run.network_calls
    teacher = None
    if run.teacher is not None and run.method.needs_teacher:
        with torch.no_grad(), autocast(device, precision):
            teacher = calls["teacher"](batch.images)
    with autocast(device, precision), sync_if(last, run.network):
        student = calls["student"](batch.images)
    smoothing = run.recipe["label_smoothing"]
    known = labelled(batch.labels)
    cross_entropy = class_loss(student.logits, batch.labels, known, smoothing)
    if blend is not None:
        second = class_loss(student.logits, blend.labels, labelled(blend.labels), smoothing)
        cross_entropy = torch.lerp(cross_entropy, second, blend.fraction)
    ce = run.method.options.ce_weight * cross_entropy
    correct = (student.logits.argmax(1) == batch.labels).double().sum() / known.clamp(min=1)
    fractions: dict[str, float] = {}
    if measure_gradients:
        fractions = gradient_fractions(run.method, ce, student, teacher, batch)
        fractions |= own_measures(run.method, student, teacher, batch)
    with watch:
        leaves = Outputs(*detached(student))
        try:
            with autocast(device, precision):
                loss = run.method(leaves, teacher, batch)
        except ValueError as error:  # features are not finite, perhaps because the cross entropy was not
            if meters is not None:
                meters.means()  # raises if an earlier step had a value that is not finite
                if not bool(cross_entropy.isfinite()):
                    raise meters.not_finite("ce") from error
            raise
        if loss.value.requires_grad:
            (loss.value * fraction).backward()
    with sync_if(last, run.network):
        backward(ce * fraction, student, leaves)
    total = ce.detach() + loss.value.detach()
    return {
        "ce": cross_entropy.detach(),
        **loss.terms,
        "loss": total,
        "train_top1": correct,
        LABELLED: known.double(),
    }, fractions


def class_loss(logits: Tensor, labels: Tensor, known: Tensor, smoothing: float) -> Tensor:
    """Mean cross entropy in fp32 over the `known` rows with a label; 0 where PyTorch's mean of none is NaN."""
    return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing, reduction="sum") / known.clamp(min=1)


def labelled(labels: Tensor) -> Tensor:
    """The number of rows with a label, int64."""
    return (labels >= 0).sum()


def detached(outputs: Outputs) -> tuple[list[Tensor], Tensor]:
    """Detached copies, at which the loss is differentiated."""
    feats = [f.detach().requires_grad_() for f in outputs.feats]
    return feats, outputs.logits.detach().requires_grad_()


def backward(ce: Tensor, student: Outputs, leaves: Outputs) -> None:
    """Gradients of the network's parameters: the cross entropy's, and those that arrived at the detached copies."""
    pairs = zip([*student.feats, student.logits], [*leaves.feats, leaves.logits], strict=True)
    # A feature of a part that is frozen has no graph.
    used = [(out, leaf.grad) for out, leaf in pairs if leaf.grad is not None and out.requires_grad]
    roots = [ce, *(out for out, _ in used)]
    torch.autograd.backward(roots, [torch.ones_like(ce), *(grad for _, grad in used)])


def gradient_fractions(
    method: Method, ce: Tensor, student: Outputs, teacher: Outputs | None, batch: Batch
) -> dict[str, float]:
    """Norm of each weighted term's gradient at the student's penultimate feature, divided by the norms' sum."""
    terms = {"ce": ce, **method.parts(student, teacher, batch)}
    norms = {name: _gradient_norm(term, student.feats[-1]) for name, term in terms.items()}
    total = sum(norms.values()) or 1.0
    return {f"grad_{name}": norm / total for name, norm in norms.items()}


def own_measures(method: Method, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, float]:
    """The measures of this batch that the method itself defines."""
    if teacher is None or not method.has_own_loss:
        return {}
    with eval_mode(method):
        return {name: float(value) for name, value in method.probe(student, teacher, batch).items()}


def _gradient_norm(term: Tensor, feature: Tensor) -> float:
    if not term.requires_grad or not feature.requires_grad:  # of a part that is frozen
        return 0.0
    (grad,) = torch.autograd.grad(term, feature, retain_graph=True, allow_unused=True)
    return 0.0 if grad is None else float(grad.float().norm())
