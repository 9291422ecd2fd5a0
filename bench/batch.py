"""The contrast of a batch with itself: both directions, loss and gradients, against plain PyTorch.

    python -m bench batch [--shapes 1024,128 ...] [--critic infonce] [--forms plain native] [--threads 1] [--quick]

Plain is `x @ y.T`, cross_entropy (or softplus) both ways, and autograd; `compile` is that under torch.compile;
`open_clip` is its loss, where it is installed. One process, interleaved, medians. A ratio is printed only for a form
that equals float64 in this very run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.bank import simd
from bench.contest import Contest, run
from bench.options import add_shapes, keep, parsed, parser
from wcord_fast import functional as F
from wcord_fast.models.torchvision_import import torchvision_models

SHAPES = ((256, 128), (1024, 128), (4096, 256), (8192, 512))
QUICK = (512, 64)
CRITICS = ("infonce", "sigmoid")
TAU, SCALE, BIAS = 0.07, 10.0, -10.0
LIMITS = {"loss": 1e-6, "grad": 1e-5}  # relative; the limit of other forms is this times larger
SLACK = 10
THEIRS = ("plain", "compile", "open_clip")
FORMS = (*THEIRS, "native", "reference")
Loss = Callable[[Tensor, Tensor], Tensor]


def plain_infonce(x: Tensor, y: Tensor) -> Tensor:
    scores = x @ y.T / TAU
    own = torch.arange(len(x))
    cross_entropy = torch.nn.functional.cross_entropy
    return cross_entropy(scores, own) + cross_entropy(scores.T, own)


def plain_sigmoid(x: Tensor, y: Tensor) -> Tensor:
    signs = 2 * torch.eye(len(x)) - 1
    return -2 * torch.nn.functional.logsigmoid(signs * (SCALE * x @ y.T + BIAS)).sum() / len(x)


def open_clip_loss(critic: str) -> Loss:
    torchvision_models("open_clip")  # which open_clip imports; also where its C++ operators do not fit this PyTorch
    from open_clip.loss import ClipLoss, SigLipLoss

    if critic == "infonce":
        clip = ClipLoss()
        return lambda x, y: 2 * clip(x, y, 1 / TAU)
    siglip, scale, bias = SigLipLoss(), torch.tensor(SCALE), torch.tensor(BIAS)
    return lambda x, y: 2 * siglip(x, y, scale, bias)


def ours(critic: str, backend: str) -> Loss:
    function, options = (F.batch_infonce, {"temperature": TAU}) if critic == "infonce" else (F.batch_sigmoid, {})
    return lambda x, y: function(x, y, backend=backend, **options).mean()


class Step:
    """One way to get the mean loss and the gradients of both sides."""

    def __init__(self, sides: tuple[Tensor, Tensor], loss: Loss):
        self.sides = [side.clone().requires_grad_() for side in sides]
        self.loss = loss

    def step(self) -> tuple[Tensor, ...]:
        loss = self.loss(*self.sides)
        return loss.detach(), *torch.autograd.grad(loss, self.sides)


def errors(step: Step, expected: tuple[Tensor, ...]) -> dict[str, float]:
    """Relative errors of the loss and of the gradients (the larger, by norm); takes a step."""
    loss, *grads = (float((a.double() - b).norm() / b.norm()) for a, b in zip(step.step(), expected, strict=True))
    return {"loss": loss, "grad": max(grads)}


def right(errors: dict[str, dict[str, float]]) -> dict[str, bool]:
    return {name: all(e[part] <= LIMITS[part] * (SLACK if name in THEIRS else 1) for part in LIMITS)
            for name, e in errors.items()}  # fmt: skip


def contest(critic: str, shape: tuple[int, int], names: tuple[str, ...] = FORMS) -> Contest:
    """The forms `names` at (B, D), on random unit rows."""
    g = torch.Generator().manual_seed(0)
    x, y = (torch.nn.functional.normalize(torch.randn(shape, generator=g), dim=1) for _ in range(2))
    expected = Step((x.double(), y.double()), ours(critic, "reference")).step()
    formula = {"infonce": plain_infonce, "sigmoid": plain_sigmoid}[critic]
    forms: dict[str, Callable[[], Any]] = {
        "plain": lambda: Step((x, y), formula),
        "compile": lambda: Step((x, y), torch.compile(formula, dynamic=False)),
        "open_clip": lambda: Step((x, y), open_clip_loss(critic)),
        "native": lambda: Step((x, y), ours(critic, "native")),
        "reference": lambda: Step((x, y), ours(critic, "reference")),
    }
    forms = {name: forms[name] for name in FORMS if name in names}
    sizes = {"critic": critic, "batch": shape[0], "dim": shape[1]}
    return Contest(sizes, forms, lambda step: errors(step, expected), right, theirs=THEIRS, notes={"simd": simd()})


def quick_contests() -> list[Contest]:
    names = tuple(name for name in FORMS if name != "compile")
    return [contest(critic, QUICK, names) for critic in CRITICS]


def main(arguments: list[str]) -> int:
    p = parser("batch", __doc__, f"the shape {QUICK} without torch.compile")
    add_shapes(p, "B,D", SHAPES)
    p.add_argument("--critic", nargs="+", choices=CRITICS, default=list(CRITICS))
    p.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="few of them for the long shapes")
    a = parsed(p, arguments)
    rows, fine = run(
        quick_contests() if a.quick else (contest(critic, s, a.forms) for critic in a.critic for s in a.shapes),
        a.repeats,
        a.clock,
    )
    keep("batch", rows, a)
    return 0 if fine else 1
