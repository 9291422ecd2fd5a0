"""The table of `python -m bench counts` on the pages."""

from __future__ import annotations

from bench.counts import CEILINGS, CLOCK, TARGETS, latest
from bench.counts_kernels import ITERATIONS, PROCESSORS
from bench.report_lines import paragraph
from bench.report_tables import Row, table

SHOWN = "sm_90"  # the target whose bound and occupancy the table shows


def counts_table(rows: list[Row]) -> str:
    """A line for each kernel: instructions per unit on every target, and the bound and occupancy on one of them."""
    newest: dict[tuple[str, str], Row] = {(r["kernel"], r["target"]): r for r in latest(rows).values()}
    lines = []
    for kernel in dict.fromkeys(r["kernel"] for r in rows):
        by_target = {target: newest[kernel, target] for target in TARGETS if (kernel, target) in newest}
        if (r := by_target.get(SHOWN)) is None:
            continue
        counts = [f"{by_target[t]['instructions']:.1f}" if t in by_target else "-" for t in TARGETS]
        occupancy = f"{r['registers']}, {r['occupancy_percent']} %"
        lines.append([kernel, r["unit"], *counts, occupancy, f"{r['bound_us']:.1f}", f"{r['floor_us']:.1f}"])
    head = ["kernel", "unit", *TARGETS, f"registers, occupancy ({SHOWN})", "bound, us", "floor, us"]
    compilers = sorted({r["compiler"] for r in newest.values()})
    note = (
        f"Warp instructions per unit of work in the machine code that {', '.join(compilers)} makes. A model, not a "
        "measurement: `bound` is the time of (B, 16384, 50000), B = 64 and D = 128 where the name has none, both "
        "directions, if each of the four "
        f"schedulers of {PROCESSORS} multiprocessors at {CLOCK / 1e9:.3f} GHz issued one in every cycle, and "
        "`floor` that of the bytes and products alone on an H200: memory and products by its data sheet, the L2 cache "
        f"at an assumed {CEILINGS['l2'] / 1e12:g} TB/s, which sets the gather rows. Transport and finish are one block "
        f"on a multiprocessor of its own: {ITERATIONS} iterations of fp32 transport without what starts and ends them, "
        "and the sums of one anchor and direction. The 16 warps of a transport block meet at two barriers in every "
        "iteration, so latencies that they cannot hide come on top, and beyond n = 64 the wait for other blocks. "
        "`python -m bench counts`."
    )
    return table(head, lines) + "\n" + paragraph(note)
