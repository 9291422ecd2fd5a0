"""The backward pass in two parts, and how large each term's gradient is.

The distillation loss is differentiated at detached copies of the student's outputs; the network is then
differentiated once, with the cross entropy's gradient and these. The sum is the same as that of one joint
backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..distill import Batch, Method, Outputs
from ..distill.modes import eval_mode


def detached(outputs: Outputs) -> tuple[list[Tensor], Tensor]:
    """Copies that end the graph, to be differentiated at."""
    feats = [f.detach().requires_grad_() for f in outputs.feats]
    return feats, outputs.logits.detach().requires_grad_()


def backward(ce: Tensor, student: Outputs, leaves: Outputs) -> None:
    """Gradients of the network's parameters: the cross entropy's, and those that arrived at the detached copies."""
    pairs = zip([*student.feats, student.logits], [*leaves.feats, leaves.logits], strict=True)
    used = [(out, leaf.grad) for out, leaf in pairs if leaf.grad is not None]
    roots = [ce, *(out for out, _ in used)]
    torch.autograd.backward(roots, [torch.ones_like(ce), *(grad for _, grad in used)])


def gradient_shares(
    method: Method, ce: Tensor, student: Outputs, teacher: Outputs | None, batch: Batch
) -> dict[str, float]:
    """Norm of each weighted term's gradient at the student's penultimate feature, as a share of the norms' sum."""
    parts = {"ce": ce, **method.parts(student, teacher, batch)}
    norms = {name: _gradient_norm(part, student.feats[-1]) for name, part in parts.items()}
    total = sum(norms.values()) or 1.0
    return {f"grad_{name}": norm / total for name, norm in norms.items()}


def probed(method: Method, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, float]:
    """The method's own measures of this batch."""
    if teacher is None or not method.uses_features:
        return {}
    with eval_mode(method):
        return {name: float(value) for name, value in method.probe(student, teacher, batch).items()}


def _gradient_norm(part: Tensor, feature: Tensor) -> float:
    if not part.requires_grad:
        return 0.0
    (grad,) = torch.autograd.grad(part, feature, retain_graph=True, allow_unused=True)
    return 0.0 if grad is None else float(grad.float().norm())
