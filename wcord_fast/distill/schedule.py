"""Factors of a term's weight that change in training, as functions of the step alone: a linear ramp, a cosine decay."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..ops.tensors import wide_dtype


def ramp_steps(ramp: float, per_epoch: int, epochs: int) -> int:
    """Training batches of a ramp: `ramp` epochs, or below 1 that fraction of all `epochs`; at least one unless 0."""
    return math.ceil((ramp * epochs if ramp < 1 else ramp) * per_epoch)


def ramp_factor(done: int, steps: int) -> float:
    """Factor of the weight in the batch after `done` ones."""
    return min(1.0, done / steps) if steps else 1.0


def require_ramp(z: str, name: str, ramp: float) -> None:
    """ValueError for z="ramp" without a ramp."""
    if z == "ramp" and not ramp:
        raise ValueError(f"z: 'ramp' estimates the constant anew after a ramp; expected {name} above 0, got {ramp}")


def module_z(z: str) -> str:
    """The loss module's own rule for `z`; the method adds the new estimate after a ramp."""
    return "first" if z == "ramp" else z


def decay_factor(done: int, steps: int, start: float) -> float:
    """1 until the fraction `start` of all `steps` batches is done, then half a cosine down to 0."""
    progress = done / max(1, steps)
    return 1.0 if progress <= start else 0.5 * (1 + math.cos(math.pi * (progress - start) / (1 - start)))


class CosineDecay(nn.Module):
    """The factor of a decaying weight: a tensor, whose current value a CUDA graph reads; not in the state dict."""

    factor: Tensor

    def __init__(self, start: float) -> None:
        super().__init__()
        self.start = start
        self.register_buffer("factor", torch.ones((), dtype=wide_dtype()), persistent=False)

    @torch.no_grad()
    def at_step(self, done: int, per_epoch: int, epochs: int) -> None:
        self.factor.fill_(decay_factor(done, per_epoch * epochs, self.start))
