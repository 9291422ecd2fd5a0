"""Means over seeds, and of paired differences, with 95 % confidence intervals by Student's t."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

LEAST_SEEDS = 3  # with fewer no interval is given, and no difference is called separated


class Estimate(NamedTuple):
    """A mean over seeds and its 95 % confidence interval by Student's t; no interval below LEAST_SEEDS seeds."""

    mean: float
    interval: tuple[float, float] | None
    seeds: int

    @property
    def separated(self) -> bool:
        """Whether the interval excludes zero."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of at least one value, one per seed."""
    from scipy import stats

    mean, n = statistics.mean(values), len(values)
    if n < LEAST_SEEDS:
        return Estimate(mean, None, n)
    half_width = float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(values) / n**0.5
    return Estimate(mean, (mean - half_width, mean + half_width), n)


def paired(ours: Mapping[int, float], others: Mapping[int, float]) -> Estimate | None:
    """The mean of `ours` minus `others`, values by seed, over the seeds that both have; None if there are none."""
    differences = [value - others[seed] for seed, value in ours.items() if seed in others]
    return estimate(differences) if differences else None


def mean_text(values: Estimate) -> str:
    """A mean with its interval, if it has one."""
    return f"{values.mean:.2f}" + (f" [{values.interval[0]:.2f}, {values.interval[1]:.2f}]" if values.interval else "")


def difference_text(difference: Estimate | None) -> str:
    """A difference with its interval and whether it is separated from zero; "-" for None."""
    if difference is None:
        return "-"
    if difference.interval is None:
        pairs = f"{difference.seeds} pair{'s' * (difference.seeds != 1)}"
        return f"{difference.mean:+.2f} ({pairs}), not separated"
    low, high = difference.interval
    return f"{difference.mean:+.2f} [{low:+.2f}, {high:+.2f}]" + ("" if difference.separated else ", not separated")
