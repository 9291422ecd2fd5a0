"""WKD-L: transport between the class probabilities (Lv, Yang, Li: NeurIPS 2024, section 2.1).

Let p and q be the softmaxes at temperature T of the teacher's and the student's logits for all classes but the image's
own class y. The transport term is, up to a constant,

    min over plans P with row sums p and column sums q of  <P, C> + eps * sum P log P,    C = 1 - exp(-sharpen * d),

where d is 1 - CKA of the teacher's features of two classes (`class_cost`). The target term is
-softmax(teacher)_y log softmax(student)_y at T = 1. The objective is CE + target + weight * transport; from 150 of 240
epochs on, `weight` falls to 0 along half a cosine.

Defaults are the public configuration for resnet32x4-resnet8x4 on CIFAR-100; the one for wrn_40_2-ShuffleV1 has weight
200 and temperature 6. The public code returns <P, C> alone and its gradient through 10 unrolled iterations. Here the
gradient is that of the problem's minimum, in closed form: it is shorter at equal weight, and points the same way only
where student and teacher are far apart. The public code also adds 1e-8 to costs and sums, changes the weight once per
epoch (here in each batch), and takes the teacher's logits or last maps as class features (here, as in the paper, its
penultimate features).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as nnf

from .. import functional as F
from ..distributed.ranks import ranks
from ..nn.options import option
from ..ops import checks
from .base import Batch, Loss, Method, Options, Outputs, Pair, require_one_label_set
from .class_cost import cka_distance, read_distance, slots_of
from .labelled import labelled_mean
from .schedule import CosineDecay


@dataclass
class WKDOptions(Options):
    """Options of "wkd".

    Attributes:
        weight: weight of the transport between the classes other than the image's.
        target_weight: weight of the target term.
        temperature: temperature of the softmaxes in the transport term.
        eps: regularisation of the transport.
        iters: iterations of the transport.
        sharpen: the cost is 1 - exp(-sharpen * distance); 0: the distance itself.
        cost: a file of NumPy (.npy) or `torch.save` with the distances between classes, [classes, classes]; default: 1
            - CKA of the teacher's features, from one pass over the training images without augmentation.
        class_images: images per class that CKA compares; default: as many as the smallest class has.
        decay: fraction of the epochs after which the transport's weight falls to 0; 1: never.
    """

    weight: float = option(600.0, checks.non_negative)
    target_weight: float = option(1.0, checks.non_negative)
    temperature: float = option(8.0, checks.positive)
    eps: float = option(0.05, checks.divisor)
    iters: int = option(10, partial(checks.integer, least=1))
    sharpen: float = option(1.0, checks.non_negative)
    cost: str | None = option(None, lambda name, file: None if file is None else checks.path(name, file))
    class_images: int | None = option(None, lambda name, k: None if k is None else checks.integer(name, k, least=2))
    decay: float = option(150 / 240, checks.fraction)


class WKD(Method):
    """CE + target_weight * target + weight * transport, on the logits and the labels."""

    options: WKDOptions
    cost: Tensor  # [classes, classes]
    _slots: Tensor  # int64 [num_data], rows of `_features`; -1: unused

    def __init__(self, pair: Pair, options: WKDOptions) -> None:
        super().__init__(pair, options)
        require_one_label_set("wkd:", pair)
        classes = pair.classes
        if classes < 3:
            raise ValueError(f"wkd: transports between the classes other than the image's, but there are {classes}")
        self.weight, self.target_weight = options.weight, options.target_weight
        self.decay = CosineDecay(options.decay)
        self.scheduled = options.decay < 1
        self.fills_banks = options.cost is None
        self._features: Tensor | None = None  # [classes * b, D], the teacher's, until the cost is made
        if options.cost is None:
            if pair.labels is None:
                raise ValueError("wkd: the cost between classes needs the labels of the training images, got None")
            try:
                slots, self._class_images = slots_of(pair.labels, classes, options.class_images)
            except ValueError as error:
                raise ValueError(f"wkd: {error}") from None
            self.register_buffer("_slots", slots, persistent=False)
            self.register_buffer("cost", torch.full((classes, classes), torch.nan))
        else:
            self.register_buffer("cost", self._sharpened(read_distance(options.cost, classes)))
        self._cost_known = options.cost is not None
        self.register_load_state_dict_post_hook(WKD._after_load)

    def _after_load(self, _) -> None:
        self._cost_known = bool(self.cost.isfinite().all())

    def _sharpened(self, distance: Tensor) -> Tensor:
        sharpen = self.options.sharpen
        return -torch.expm1(-sharpen * distance) if sharpen else distance

    def fill_banks(self, student: Outputs, teacher: Outputs, index: Tensor) -> None:
        features = teacher.feats[-1].detach().float()
        if self._features is None:
            self._features = features.new_zeros(len(self.cost) * self._class_images, features.shape[1])
        slots = self._slots[index]
        kept = slots >= 0
        self._features[slots[kept]] = features[kept]

    def banks_filled(self) -> None:
        features, self._features = self._features, None
        if features is None:
            raise RuntimeError("wkd: banks_filled() was called before fill_banks()")
        if ranks().world > 1:
            filled = features.any(1).to(features.dtype)  # a sampler that pads shows an image to two ranks
            for values in (features, filled):
                dist.all_reduce(values)
            features /= filled.clamp_min(1)[:, None]
        distance = cka_distance(features.view(len(self.cost), self._class_images, -1))
        self.cost.copy_(self._sharpened(distance))
        self._cost_known = True

    def at_step(self, done: int, per_epoch: int, epochs: int) -> None:
        self.decay.at_step(done, per_epoch, epochs)

    def own_loss(self, student: Outputs, teacher: Outputs, batch: Batch) -> Loss:
        target, transport = self._terms(student, teacher, batch)
        value = self.target_weight * target + self.weight * self.decay.factor * transport
        return Loss(value, {"target": target.detach(), "transport": transport.detach()})

    def own_parts(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        target, transport = self._terms(student, teacher, batch)
        return {"target": self.target_weight * target, "transport": self.weight * self.decay.factor * transport}

    def _terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> tuple[Tensor, Tensor]:
        if not self._cost_known:
            raise RuntimeError(
                "wkd: the cost between classes is not known yet; call fill_banks() with the outputs for every training "
                "image and then banks_filled(), load a state dict, or give the option cost"
            )
        options = self.options
        s, t = student.logits, teacher.logits.detach()
        return target_term(s, t, batch.labels), class_transport(
            s, t, batch.labels, self.cost, options.temperature, options.eps, options.iters
        )


def target_term(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Batch mean of -softmax(teacher)_y log softmax(student)_y for logits [B, C] and labels y [B].

    Rows with a label below 0 are left out.
    """
    own = labels.clamp_min(0)[:, None]
    log_s, log_t = (z.to(_compute_dtype(z)).log_softmax(1).gather(1, own)[:, 0] for z in (student, teacher))
    return -labelled_mean(log_t.exp() * log_s, labels)


def class_transport(
    student: Tensor, teacher: Tensor, labels: Tensor, cost: Tensor, temperature: float, eps: float, iters: int
) -> Tensor:
    """Batch mean of min <P, C> + eps sum P log P between the softmaxes of the logits [B, C] without the labels [B].

    The constant 2 eps H(p), with p's entropy H(p), is added, so that the value is not negative at q = p. It is computed
    in fp32, or fp64 for fp64 logits. The gradient is that of the minimum. Rows with a label below 0 are left out.
    """
    dtype = _compute_dtype(student)
    is_target = nnf.one_hot(labels.clamp_min(0), student.shape[1]).bool()
    log_s, log_t = (
        (z.to(dtype) / temperature).masked_fill(is_target, -torch.inf).log_softmax(1) for z in (student, teacher)
    )
    p, q = log_t.exp(), log_s.exp()
    transport = F.ot_cost_from_matrix(cost.to(dtype), p, q, eps=eps, iters=iters, value="dual")
    # "dual" is <P, C> + eps KL(P || p q), and sum P log P = KL(P || p q) + sum p log p + sum q log q.
    log_s, log_t = (log.masked_fill(is_target, 0) for log in (log_s, log_t))
    return labelled_mean(transport + eps * ((q * log_s).sum(1) - (p * log_t).sum(1)), labels)


def _compute_dtype(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)
