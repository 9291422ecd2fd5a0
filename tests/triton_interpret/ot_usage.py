"""The report of ptxas on the streaming Sinkhorn kernels, as JSON: `python -m tests.triton_interpret.ot_usage 90`."""

from __future__ import annotations

import itertools
import json
import sys

from tests.triton_ptxas import usage
from wcord_fast.ops.sinkhorn import matrix_triton as matrix_launcher
from wcord_fast.ops.sinkhorn import triton as launcher
from wcord_fast.ops.sinkhorn import triton_kernels as kernels
from wcord_fast.ops.sinkhorn import triton_pairs as pairs

F, H, I = "*fp32", "*fp16", "i32"  # noqa: E741
PAIRS = {"row_ids": "*i32", "col_ids": "*i32", "kappa": F}
SIZES = {"n": I, "m": I, "num_strips": I, "tiles": I}
SWEEP = {"h": F, "active": "*i32", "top": F, "total": F, **PAIRS, "s": "fp32", **SIZES}
COMBINE = {"top": F, "total": F, "log_mass": F, "active": "*i32", "potential": F, "ahead": F, "damp": "fp32"}
COMBINE |= {"n": I, "num_strips": I}
PLAN_SUM = dict.fromkeys(("costs", "alpha", "beta", "scale", "weight", "out"), F)
PLAN_SUM |= dict.fromkeys(("problems", "each", "n", "m"), I)
FINISH = {"v": H, "alpha": F, "beta": F, "scale": F, "mass": F, "moved": F, "pulled": F, **PAIRS, **SIZES}
PAIR = {"row_labels": "*i64", "col_labels": "*i64", "col_mass": F, "ids": "*i32", "mass": F, "n": I, "m": I}


def cases():
    """(name, kernel, types, constants, tile) of the launcher's choices, narrow and wide."""
    for cost, d, split, paired in (
        ("cosine", 64, True, False),
        ("cosine", 64, True, True),
        ("cosine", 128, True, False),
        ("cosine", 128, True, True),
        ("cosine", 128, False, False),
        ("cosine", 256, True, False),
        ("cosine", 256, True, True),
        ("sqeuclidean", 128, True, False),
        ("sqeuclidean", 128, True, True),
        ("euclidean", 128, True, False),
        ("euclidean", 128, True, True),
    ):
        cosine, width = cost == "cosine", launcher.padded_width(d)
        features = {"x": H, "y": H} if cosine else {"x": F, "y": F}
        common = {"COST": cost, "D": width if cosine else d, "SPLIT": split, "ROWS": d != 64, "PAIRED": paired}
        tile = launcher.sweep_tile(cost, width, paired)
        blocks = {"BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k}
        yield f"sweep {cost} {d} {split} {paired}", kernels.sweep_kernel, features | SWEEP, common | blocks, tile
        tile = launcher.finish_tile(cost, width)
        blocks = {"BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k, "BLOCK_OUT": tile.out, "D_OUT": width}
        for gradient in (True, False) if d == 128 and split else (True,):
            constants = {"GRADIENT": gradient, **common, **blocks}
            name = f"finish {cost} {d} {split} {gradient} {paired}"
            yield name, kernels.finish_kernel, features | FINISH, constants, tile
    for cost, rows in itertools.product(launcher.GIVEN, (True, False)):
        common = {"COST": cost, "D": 1, "SPLIT": True, "ROWS": rows, "PAIRED": False}
        tile = launcher.sweep_tile(cost, 1)
        blocks = {"BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k}
        yield f"sweep {cost} {rows}", kernels.sweep_kernel, {"x": F, "y": F} | SWEEP, common | blocks, tile
        tile = launcher.finish_tile(cost, 1)
        blocks = {"BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k, "BLOCK_OUT": tile.out}
        constants = {"GRADIENT": False, "D_OUT": launcher.padded_width(1), **common, **blocks}
        yield f"finish {cost} {rows}", kernels.finish_kernel, {"x": F, "y": F} | FINISH, constants, tile
    for shared in (True, False):
        constants = {"SHARED": shared, "BLOCK": matrix_launcher.GRADIENT_BLOCK}
        yield f"plan_sum {shared}", kernels.plan_sum_kernel, PLAN_SUM, constants, launcher.Tile(0, 0, 0, 0, 4, 1, 4)
    constants = {"ALONE": -1, "BLOCK_M": pairs.BLOCK_M, "BLOCK_N": pairs.BLOCK_N}
    yield "pair", pairs.pair_kernel, PAIR, constants, launcher.Tile(0, 0, 0, 0, 4, 1, 1)
    constants = {"EXTRAPOLATE": True, "PLAIN": False, "BLOCK": launcher.COMBINE_BLOCK}
    yield "combine", kernels.combine_kernel, COMBINE, constants, launcher.Tile(0, 0, 0, 0, 4, 1, 1)


def main(capability: int) -> None:
    for name, kernel, types, constants, tile in cases():
        resources = usage(kernel, types, constants, capability=capability, warps=tile.warps, stages=tile.stages)
        print(json.dumps({"name": name, **resources, "warps": tile.warps, "resident": tile.resident}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
