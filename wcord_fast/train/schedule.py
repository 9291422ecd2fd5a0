"""The learning rate of an epoch, and of a run that continues to more epochs (`--extend`)."""

from __future__ import annotations

import math
from typing import Any

from .recipe import DEFAULTS


def learning_rate(recipe: dict[str, Any], epoch: int, fraction: float = 0.0) -> float:
    """The learning rate in epoch `epoch` (from 0), after `fraction` of its steps.

    "steps": lr * lr_decay^(milestones passed), which count epochs from 1. "cosine": half a cosine from lr to 0 between
    the end of the warm-up and the last epoch. In the warm-up the rate is multiplied by a factor that rises to 1.
    """
    recipe = DEFAULTS | recipe
    begin, done = warmup_epochs(recipe), epoch + fraction
    if recipe["schedule"] == "cosine":
        progress = min(1.0, max(0.0, done - begin) / max(recipe["epochs"] - begin, 1e-9))
        rate = recipe["lr"] * (0.5 + 0.5 * math.cos(math.pi * progress))
    else:
        rate = recipe["lr"] * recipe["lr_decay"] ** sum(epoch + 1 > end for end in decay_epochs(recipe))
    return rate * done / begin if done < begin else rate


def warmup_epochs(recipe: dict[str, Any]) -> float:
    """Epochs of the warm-up."""
    return recipe["warmup"] * recipe["epochs"] if recipe["warmup"] < 1 else recipe["warmup"]


def changes_by_step(recipe: dict[str, Any]) -> bool:
    """Whether the rate differs between the steps of an epoch."""
    return recipe["schedule"] == "cosine" or recipe["warmup"] > 0


def decay_epochs(recipe: dict[str, Any]) -> list[float]:
    """The epochs, counted from 1, after which the rate decays."""
    return [round(m * recipe["epochs"]) if m < 1 else m for m in recipe["milestones"]]


def lengthened(saved: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """The spec `saved` of a checkpoint, with the epochs of `wanted` if those are more."""
    old, new = (spec.get("recipe", {}).get("epochs") for spec in (saved, wanted))
    if isinstance(old, int) and isinstance(new, int) and old < new:
        return {**saved, "recipe": {**saved["recipe"], "epochs": new}}
    return saved


def announcement(old: dict[str, Any], new: dict[str, Any], done: int, scheduled: bool = False) -> str:
    """The message to the user of a run of recipe `old` that continues after epoch `done` by the longer `new`.

    Args:
        scheduled: whether weights of the method change in training.
    """
    old, new = DEFAULTS | old, DEFAULTS | new
    ends = ", ".join(map(str, dict.fromkeys(decay_epochs(new)))) or "none"
    total = new["epochs"]
    falls = "falls as a cosine" if new["schedule"] == "cosine" else f"decays after epochs {ends}"
    message = (
        f"extended from {old['epochs']} to {total} epochs after epoch {done}. From here on the schedule is that of "
        f"{total} epochs: {falls}, next rate {learning_rate(new, done):g}"
    )
    if scheduled:
        message += f". So are the method's weights that change in training, which began as for {old['epochs']} epochs"
    within = (0.0, 0.5, 1.0) if changes_by_step(old) or changes_by_step(new) else (0.0,)
    differing = [
        e + 1 for e in range(done) if any(learning_rate(old, e, at) != learning_rate(new, e, at) for at in within)
    ]
    if differing:
        return f"{message}. An uninterrupted run of {total} epochs has other rates in epochs {_ranges(differing)}"
    return f"{message}. The epochs so far had the rates of an uninterrupted run of {total}"


def _ranges(numbers: list[int]) -> str:
    """Ascending numbers as text; consecutive ones as a range, such as 3-5."""
    begins = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(begins, ends, strict=True))
