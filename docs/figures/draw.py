"""The pictures of the concept pages, made with the library itself: `python docs/figures/draw.py [FOLDER]`.

What is drawn and the transport plans are results of the public functions; the two others are diagrams.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch

from wcord_fast import NegativeSampler, functional
from wcord_fast.ops.sinkhorn import native_cpu

CLASSES = ("#4269d0", "#efb118", "#3ca951", "#ff725c", "#a463f2")
INK, GREY, PALE = "#333", "#888", "#e6e6e6"
# The largest square problems in fp32 on an H200: wcord_fast/ops/sinkhorn/README.md, "the whole solve in one launch".
CUDA_RESIDENT, CUDA_COOPERATIVE = 224, 2312


def box(x: float, y: float, width: float, height: float, fill: str, stroke: str = "none", opacity: float = 1.0) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}" '
        f'stroke="{stroke}" opacity="{opacity:.3g}"/>'
    )


def text(x: float, y: float, words: str, anchor: str = "start", size: int = 13, colour: str = INK) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}">{words}</text>'


def line(x1: float, y1: float, x2: float, y2: float, colour: str = GREY, width: float = 1) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f} L{x2:.1f} {y2:.1f}" stroke="{colour}" stroke-width="{width}" fill="none"/>'


def svg(width: int, height: int, title: str, parts: list[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" role="img">'
    )
    return "\n".join([head, f"<title>{title}</title>", *parts, "</svg>", ""])


def draws() -> str:
    """Three anchors in two steps on a bank of 60 rows: which rows are drawn, and which are not in the pool."""
    rows, drawn, cell = 60, 12, 12
    labels = torch.arange(rows) * len(CLASSES) // rows
    sampler = NegativeSampler(rows, drawn, labels=labels, seed=0)
    index = torch.tensor([4, 29, 50])
    left, parts = 110, []
    for c, colour in enumerate(CLASSES):
        start = left + int((labels < c).sum()) * cell
        parts.append(text(start + 2, 16, f"class {c}", size=12))
        parts.append(box(start, 20, int((labels == c).sum()) * cell - 2, 5, colour))
    for step in range(2):
        y = 48 + step * 108
        parts.append(text(left, y - 7, f"step {step}", size=12, colour=GREY))
        for b, rows_drawn in enumerate(sampler.draw(index).tolist()):
            top = y + b * 26
            parts.append(text(left - 8, top + 14, f"anchor of row {int(index[b])}", "end", 12))
            for row in range(rows):
                own_class = labels[row] == labels[index[b]]
                if row == index[b]:
                    parts.append(box(left + row * cell, top, cell - 2, 18, "#000"))
                elif row in rows_drawn:
                    parts.append(box(left + row * cell, top, cell - 2, 18, CLASSES[int(labels[row])]))
                elif not own_class:
                    parts.append(box(left + row * cell, top, cell - 2, 18, PALE))
        sampler.advance()
    return svg(left + rows * cell + 10, 240, "Rows that three anchors draw in two steps", parts)


def plans() -> str:
    """Gather: three anchors fetch their rows. Dense: a tile times all anchors, masked."""
    rows, drawn, tile, cell = 24, 6, 6, 18
    sampler, index = NegativeSampler(rows, drawn, exclude="self", seed=1), torch.tensor([2, 9, 17])
    chosen = sampler.draw(index).tolist()
    parts = [text(20, 22, "gather: each anchor fetches its rows", size=15)]
    parts += [box(40 + row * cell, 180, cell - 2, 40, PALE, GREY) for row in range(rows)]
    for b, rows_drawn in enumerate(chosen):
        x = 130 + b * 130
        parts += [line(x + 14, 78, 40 + row * cell + cell / 2 - 1, 180, CLASSES[b], 1.5) for row in rows_drawn]
        parts += [box(x, 50, 28, 28, CLASSES[b]), text(x + 36, 69, f"anchor {b}")]
    parts.append(text(40, 242, "bank: N rows; K of them are read for each anchor", colour=GREY))
    left = 560
    parts.append(text(left - 20, 22, "dense: each tile of the bank meets all anchors", size=15))
    for b, rows_drawn in enumerate(chosen):
        y = 60 + b * 36
        parts += [box(left, y, 28, 28, CLASSES[b]), text(left - 8, y + 19, f"{b}", "end")]
        for row in range(rows):
            fill = CLASSES[b] if row in rows_drawn else "#fff"
            parts.append(box(left + 50 + row * cell + row // tile * 8, y, cell - 2, 28, fill, GREY))
    for row in range(rows):
        parts.append(box(left + 50 + row * cell + row // tile * 8, 180, cell - 2, 40, PALE, GREY))
    for number in range(rows // tile):
        middle = left + 50 + (number * tile + tile / 2) * cell + number * 8
        parts.append(text(middle, 242, f"tile {number}", "middle", colour=GREY))
    return svg(1070, 256, "The gather plan and the dense plan score the same draws", parts)


def transport_plans() -> str:
    """Real plans between twelve rows and noisy copies of them in another order."""
    generator = torch.Generator().manual_seed(0)
    n, cell = 12, 15
    y = torch.randn(n, 8, generator=generator)
    order = torch.randperm(n, generator=generator)
    x = y[order] + 0.6 * torch.randn(n, 8, generator=generator)
    cases = [("sinkhorn", 0.5, 50), ("sinkhorn", 0.1, 50), ("sinkhorn", 0.02, 500), ("ipot", 0.5, 50)]
    parts = []
    for k, (solver, eps, iterations) in enumerate(cases):
        plan = functional.ot_plan(x, y, solver=solver, eps=eps, iters=iterations, backend="reference") * n
        left = 20 + k * (n * cell + 28)
        parts.append(text(left, 20, f"{solver}, eps {eps}"))
        parts.append(box(left - 1, 29, n * cell + 1, n * cell + 1, "#fff", GREY))
        for i in range(n):
            for j in range(n):
                mass = round(min(1.0, float(plan[i, j])), 2)
                if mass > 0:
                    parts.append(box(left + j * cell, 30 + i * cell, cell - 1, cell - 1, CLASSES[0], opacity=mass))
    parts.append(text(20, 30 + n * cell + 20, "rows: x; columns: y; full colour: all mass of a row", colour=GREY))
    return svg(20 + 4 * (n * cell + 28), 30 + n * cell + 34, "Transport plans of two solvers", parts)


def transport_regimes() -> str:
    """Regimes over the number of rows n = m, on a logarithmic axis."""
    stored = 1
    while native_cpu.layout(2 * stored, 2 * stored, 128, budget=2**30).regime == "resident":
        stored *= 2
    left, width, least, most = 170, 720, 16, 131072

    def place(n: float) -> float:
        return left + width * math.log(n / least) / math.log(most / least)

    bars = {
        "CPU": [("resident", least, stored), ("streaming", stored, most)],
        "CUDA (H200, fp32)": [
            ("resident", least, CUDA_RESIDENT),
            ("cooperative", CUDA_RESIDENT, CUDA_COOPERATIVE),
            ("streaming (Triton)", CUDA_COOPERATIVE, most),
        ],
    }
    parts = []
    for k, (device, pieces) in enumerate(bars.items()):
        y = 24 + k * 58
        parts.append(text(left - 12, y + 24, device, "end"))
        for c, (name, start, end) in enumerate(pieces):
            fill = CLASSES[1] if name.startswith("streaming") else CLASSES[2 * c]
            parts.append(box(place(start), y, place(end) - place(start) - 2, 38, fill, opacity=0.6))
            parts.append(text((place(start) + place(end)) / 2, y + 24, name, "middle"))
            if c:
                parts.append(text(place(start), y - 5, f"{start:,}", "middle", 12, GREY))
    for n in (16, 64, 256, 1024, 4096, 16384, 65536):
        parts += [line(place(n), 124, place(n), 130), text(place(n), 146, f"{n:,}", "middle", 12)]
    parts += [line(left, 124, left + width, 124), text(left + width / 2, 168, "rows on each side, n = m", "middle")]
    return svg(920, 178, "Regimes by size and device", parts)


FIGURES = {
    "draws": draws,
    "plans": plans,
    "transport_plans": transport_plans,
    "transport_regimes": transport_regimes,
}


def main(folder: Path) -> None:
    for name, figure in FIGURES.items():
        (folder / f"{name}.svg").write_text(figure())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
