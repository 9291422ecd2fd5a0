"""Gather or dense: a small cost model of the two plans of the bank ops.

`gather` walks each anchor's K draws (cost ~ B * K * D, scattered reads); `dense` multiplies all anchors with the whole
bank and weights the cells by membership (cost ~ B * N * D, streaming). Both give the same result to rounding.
"""

from __future__ import annotations

from ..sampling.spec import DrawSpec

PLANS = ("gather", "dense")

# Cells of a dense pass that cost as much as one gathered draw (N/K where the plans tie), per backend and device.
# Reference on the CPU: measured at B = 64, N = 50,000, D = 128, fp32, one thread; 1.3 us per draw, 45 ns per cell.
BREAK_EVEN = {("reference", "cpu"): 30.0}
DEFAULT_BREAK_EVEN = 23.0  # where dense passes L2 gathers by their bytes; not measured


def choose(plan: str, num_data: int, spec: DrawSpec, backend: str, device: str) -> tuple[str, str]:
    """The plan to run and the reason."""
    if plan != "auto":
        return plan, "asked for"
    if spec.whole_pool:
        return "dense", "every pool row is scored"
    ratio, limit = num_data / spec.k, BREAK_EVEN.get((backend, device), DEFAULT_BREAK_EVEN)
    sign = "<=" if ratio <= limit else ">"
    return ("dense" if ratio <= limit else "gather"), f"N/K = {ratio:.3g} {sign} {limit:.3g}, the break-even"
