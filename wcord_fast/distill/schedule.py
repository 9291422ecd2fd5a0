"""A ramp of a term's weight: linear from 0 over the first steps of training, a function of the step alone."""

from __future__ import annotations

import math


def ramp_steps(ramp: float, per_epoch: int, epochs: int) -> int:
    """Training batches that a ramp lasts: `ramp` epochs, or below 1 that part of all `epochs`; at least 1 unless 0."""
    return math.ceil((ramp * epochs if ramp < 1 else ramp) * per_epoch)


def ramp_factor(done: int, steps: int) -> float:
    """Factor of the weight in the batch after `done` ones."""
    return min(1.0, done / steps) if steps else 1.0


def require_ramp(z: str, name: str, ramp: float) -> None:
    """ValueError for z="ramp" without a ramp."""
    if z == "ramp" and not ramp:
        raise ValueError(f"z: 'ramp' estimates the constant anew after a ramp; expected {name} above 0, got {ramp}")


def module_z(z: str) -> str:
    """The rule that the loss module follows by itself."""
    return "first" if z == "ramp" else z
