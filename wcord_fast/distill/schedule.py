"""A ramp of a term's weight: linear from 0 over the first steps of training, a function of the step alone."""

from __future__ import annotations

import math

from ..ops import checks

Z_RULES = ("first", "ema", "ramp")


def ramp_steps(ramp: float, per_epoch: int, epochs: int) -> int:
    """Training batches that a ramp lasts: `ramp` epochs, or below 1 that part of all `epochs`; at least 1 unless 0."""
    return math.ceil((ramp * epochs if ramp < 1 else ramp) * per_epoch)


def ramp_factor(done: int, steps: int) -> float:
    """Factor of the weight in the batch after `done` ones."""
    return min(1.0, done / steps) if steps else 1.0


def check_ramp(name: str, ramp: float) -> float:
    """A ramp's length: 0, a part of the epochs below 1, or a number of epochs."""
    return checks.non_negative(name, ramp)


def check_z(z: str, name: str, ramp: float) -> str:
    """The rule for log Z; "ramp" needs one."""
    checks.choice("z", z, Z_RULES)
    if z == "ramp" and not ramp:
        raise ValueError(f"z: 'ramp' estimates the constant anew after a ramp; expected {name} above 0, got {ramp}")
    return z


def module_z(z: str) -> str:
    """The rule that the loss module follows by itself."""
    return "first" if z == "ramp" else z
