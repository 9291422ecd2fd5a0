"""The kernels that `python -m bench counts` counts, and their units of work.

A kernel's loop is found by what stands in it (`through`), so an entry follows the code through changes that keep what
it does. Numbers of draws are means over the pools of the shape (64, 16384, 50,000) with 100 classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bench.gpu_floors import Work, gather_work, membership_work

BATCH, K, NUM_DATA, DIM, CLASSES = 64, 16384, 50_000, 128, 100
POOL = NUM_DATA - NUM_DATA // CLASSES
ACCEPTED = POOL / (1 << (POOL - 1).bit_length())  # of the numbers that a permutation walks through
WARP = 32


def slowest_lane(accepted: float) -> float:
    """How many passes the slowest of 32 lanes needs on average, if a pass is accepted with this probability."""
    return sum(1 - (1 - (1 - accepted) ** n) ** WARP for n in range(64))


@dataclass(frozen=True)
class Kernel:
    """A kernel, the loop in it that does the work, and a case to which the count is extrapolated."""

    name: str
    unit: str  # the unit of work of the count
    source: str  # a file of csrc/cuda
    symbol: str  # a pattern of the mangled name
    through: Mapping[str, float]  # contents of a round of the loop (machine_code.cheapest_round)
    units: float  # that a warp does in one round
    threads: int  # in a block
    dynamic_shared: int  # bytes of a block
    total: float  # units of the case
    work: Work  # of the case, for its floor
    trips: tuple[tuple[str, float], ...] = field(default=())


PASSES = slowest_lane(ACCEPTED)


def _gather(name: str, bank: str, dim: int, width: int, tile_rows: int, multiply_adds: int, critic: str = "") -> Kernel:
    """The loop over 32 draws, in which a loop goes over tiles of rows: `multiply_adds` in the tile of a direction.

    Args:
        critic: "softmax" (InfoNCE), "sigmoid" or "" (NCE).
    """
    tiles = WARP / tile_rows
    term = {"approximate.h .*MUFU.EX2": 2 * tiles} if critic == "softmax" else {"approximate.h .*MUFU.RCP": 4 * tiles}
    return Kernel(
        name=f"gather {' '.join(filter(None, (critic, name)))} D={dim}",
        unit="draw, both directions",
        source=f"bank_gather{critic and '_'}{critic}.cu",
        symbol=rf"gather_rows_kernelI{bank}Li{dim}ELb0E",
        through={
            "permutation.h .*IMAD": 6 * PASSES,
            "FFMA": 2 * tiles * multiply_adds,
            **term,
        },
        trips=(("permutation.h .*IMAD", PASSES), ("LDG.E.128", tiles)),
        units=WARP,
        threads=256,
        dynamic_shared=16 * 1024,
        total=BATCH * K,
        work=gather_work(BATCH, K, NUM_DATA, dim, width, l2=50 << 20),
    )


KERNELS = (
    Kernel(
        name="membership, bits",
        unit="32 draws",
        source="membership.cu",
        symbol="membership_kernelILb0ELb1E",
        through={"permutation.h .*IMAD": 6, "ATOMS.OR": 1, r" LDG?\.E": 1},
        units=ACCEPTED,  # a round is one pass of every lane
        threads=512,
        dynamic_shared=8 * 1024,
        total=BATCH * K / WARP,
        work=membership_work(BATCH, NUM_DATA),
    ),
    _gather("bf16", "NS_4Bf16E", 128, 2, tile_rows=16, multiply_adds=64),
    _gather("fp16", "NS_3F16E", 128, 2, tile_rows=16, multiply_adds=128),
    _gather("fp32", "f", 128, 4, tile_rows=8, multiply_adds=64),
    *(
        kernel
        for critic in ("softmax", "sigmoid")
        for kernel in (
            _gather("bf16", "NS_4Bf16E", 128, 2, tile_rows=16, multiply_adds=64, critic=critic),
            _gather("fp32", "f", 128, 4, tile_rows=8, multiply_adds=64, critic=critic),
        )
    ),
)
