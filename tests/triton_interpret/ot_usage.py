"""The report of ptxas on the streaming Sinkhorn kernels, as JSON: `python -m tests.triton_interpret.ot_usage 90`."""

from __future__ import annotations

import json
import sys

from tests.triton_ptxas import usage
from wcord_fast.ops.sinkhorn import triton as launcher
from wcord_fast.ops.sinkhorn import triton_kernels as kernels

F, H, I = "*fp32", "*fp16", "i32"  # noqa: E741
SIZES = {"n": I, "m": I, "num_strips": I, "tiles": I}
SWEEP = {"h": F, "active": "*i32", "top": F, "total": F, "s": "fp32", **SIZES}
COMBINE = {"top": F, "total": F, "log_mass": F, "active": "*i32", "potential": F, "ahead": F, "n": I, "num_strips": I}
FINISH = {"v": H, "alpha": F, "beta": F, "scale": F, "mass": F, "moved": F, "pulled": F, **SIZES}


def cases():
    """(name, kernel, types, constants, tile) of the launcher's choices, narrow and wide."""
    for cost, d, split in (
        ("cosine", 64, True),
        ("cosine", 128, True),
        ("cosine", 128, False),
        ("cosine", 256, True),
        ("sqeuclidean", 128, True),
    ):
        cosine, width = cost == "cosine", launcher.padded_width(d)
        features = {"x": H, "y": H} if cosine else {"x": F, "y": F}
        common = {"COSINE": cosine, "D": width if cosine else d, "SPLIT": split, "ROWS": d != 64}
        tile = launcher.sweep_tile(cost, width)
        blocks = {"BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k}
        yield f"sweep {cost} {d} {split}", kernels.sweep_kernel, features | SWEEP, common | blocks, tile
        tile = launcher.finish_tile(cost, width)
        blocks = {"BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k, "BLOCK_OUT": tile.out, "D_OUT": width}
        for gradient in (True, False) if d == 128 and split else (True,):
            constants = {"GRADIENT": gradient, **common, **blocks}
            yield f"finish {cost} {d} {split} {gradient}", kernels.finish_kernel, features | FINISH, constants, tile
    constants = {"EXTRAPOLATE": True, "PLAIN": False, "BLOCK": launcher.COMBINE_BLOCK}
    yield "combine", kernels.combine_kernel, COMBINE, constants, launcher.Tile(0, 0, 0, 0, 4, 1, 1)


def main(capability: int) -> None:
    for name, kernel, types, constants, tile in cases():
        resources = usage(kernel, types, constants, capability=capability, warps=tile.warps, stages=tile.stages)
        print(json.dumps({"name": name, **resources, "warps": tile.warps, "resident": tile.resident}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
