"""Instructions per unit of work of the dense plan's Triton kernels, for `python -m bench counts`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.counts_kernels import DIM, NUM_DATA, WARP, K, Kernel, Way
from bench.gpu_floors import dense_work

TARGETS = ("sm_80", "sm_90")  # later ones put the walk into functions of its own, which machine_code.py does not follow
WIDTHS = {"bf16": 2, "fp32": 4}
CASES = tuple(
    (kernel, member, bank, batch)
    for kernel in ("nce", "critic")
    for member in ("mask", "counts")
    for bank in WIDTHS
    for batch in (64, 256)
)
TITLES = {"nce": "dense NCE", "critic": "dense InfoNCE"}
MEMBER_BITS = {"mask": 1, "counts": 16}  # of a row and anchor


def name_of(kernel: str, member: str, bank: str, batch: int) -> str:
    return f"{TITLES[kernel]} {bank} B={batch}" + (" counts" if member == "counts" else "")


def unavailable_reason() -> str | None:
    """Why Triton's kernels cannot be compiled in this process, or None."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        return "TRITON_INTERPRET=1: kernels are interpreted, not compiled"
    return None


def rows(
    row: Callable[..., dict[str, Any]], only: Callable[[str], object], targets: Sequence[str], folder: Path
) -> Iterator[dict[str, Any]]:
    """A row for each case whose name `only` takes and each target: `row` of its binary, which is left in `folder`."""
    import triton

    from bench.machine_code import functions, resources
    from bench.triton_code import bank_walk

    for target in TARGETS:
        if target not in targets:
            continue
        capability = int(target.removeprefix("sm_"))
        for case in CASES:
            if not only(name_of(*case)):
                continue
            walk = bank_walk(capability, *case[:3], DIM, case[3])
            result = walk.compile(capability)
            cubin = folder / "triton.cubin"
            cubin.write_bytes(result.asm["cubin"])
            kernel = _kernel(case, walk, result.metadata.shared)
            yield {
                **row(kernel, target, functions(cubin), resources(cubin)),
                "compiler": f"triton {triton.__version__}",
            }


def _kernel(case: tuple[str, str, str, int], walk, shared: int) -> Kernel:
    _, member, bank, batch = case
    threads = walk.tiles.warps * WARP
    cells = walk.tiles.block_b * walk.tiles.block_n / threads  # of a thread in a tile
    return Kernel(
        name=name_of(*case),
        unit="32 cells of a direction",
        source="triton",
        symbol=f"^{walk.kernel.__name__}$",
        ways=(Way({r"MUFU\.EX2": cells}),),
        units=cells,
        threads=threads,
        dynamic_shared=shared,
        total=2 * batch * NUM_DATA / WARP,
        work=dense_work(batch, K, NUM_DATA, DIM, WIDTHS[bank], MEMBER_BITS[member]),
    )
