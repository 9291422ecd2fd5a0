"""The kernels that `python -m bench counts` counts, and their units of work.

A kernel's loop is found by what stands in it (`through`), so an entry follows the code through changes that keep what
it does. Numbers of draws are means over the pools of the shape (64, 16384, 50,000) with 100 classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.gpu_floors import Work, gather_work, membership_work

BATCH, K, NUM_DATA, DIM, CLASSES = 64, 16384, 50_000, 128, 100
POOL = NUM_DATA - NUM_DATA // CLASSES
ACCEPTED = POOL / (1 << (POOL - 1).bit_length())  # of the numbers that a permutation walks through
WARP, PROCESSORS = 32, 132
ITERATIONS = 50  # of a transport problem


def slowest_lane(accepted: float) -> float:
    """How many passes the slowest of 32 lanes needs on average, if a pass is accepted with this probability."""
    return sum(1 - (1 - (1 - accepted) ** n) ** WARP for n in range(64))


@dataclass(frozen=True)
class Way:
    """A way round the loop that does the work, and how many warps take it."""

    through: Mapping[str, float]  # contents of the round (machine_code.cheapest_round)
    trips: tuple[tuple[str, float], ...] = ()
    warps: float = 1


@dataclass(frozen=True)
class Kernel:
    """A kernel, the ways of its warps round a loop, and a case to which the count is extrapolated."""

    name: str
    unit: str  # the unit of work of the count
    source: str  # a file of csrc/cuda
    symbol: str  # a pattern of the mangled name
    ways: tuple[Way, ...]
    units: float  # that the warps of all ways do in one round
    threads: int  # in a block
    dynamic_shared: int  # bytes of a block
    total: float  # units of the case
    work: Work  # of the case, for its floor
    processors: int = PROCESSORS  # that share the units


PASSES = slowest_lane(ACCEPTED)


def _gather(name: str, bank: str, dim: int, width: int, tile_rows: int, multiply_adds: int, critic: str = "") -> Kernel:
    """The loop over 32 draws, in which a loop goes over tiles of rows: `multiply_adds` in the tile of a direction.

    Args:
        critic: "softmax" (InfoNCE), "sigmoid" or "" (NCE).
    """
    tiles = WARP / tile_rows
    padded = next(width for width in (64, 128, 256) if dim <= width)  # for which the kernel is compiled
    term = {"approximate.h .*MUFU.EX2": 2 * tiles} if critic == "softmax" else {"approximate.h .*MUFU.RCP": 4 * tiles}
    return Kernel(
        name=f"gather {' '.join(filter(None, (critic, name)))} D={dim}",
        unit="draw, both directions",
        source=f"bank_gather{critic and '_'}{critic}.cu",
        symbol=rf"gather_rows_kernelI{bank}Li{padded}ELb0E",
        ways=(
            Way(
                {
                    "permutation.h .*IMAD": 6 * PASSES,
                    "FFMA": 2 * tiles * multiply_adds,
                    **term,
                },
                trips=(("permutation.h .*IMAD", PASSES), ("LDG.E.128", tiles)),
            ),
        ),
        units=WARP,
        threads=256,
        dynamic_shared=16 * 1024,
        total=BATCH * K,
        work=gather_work(BATCH, K, NUM_DATA, dim, width, l2=50 << 20),
    )


def _of_one(work: Work) -> Work:
    """The work whose floor on all multiprocessors is that of `work` on one."""
    return {name: PROCESSORS * amount for name, amount in work.items()}


ROW, COLUMN = "approximate.h .*MUFU.EX2", "approximate.h .*MUFU.LG2"  # of the sweep, of rows and columns
SEND = r" (RED|ATOM)[.G]"  # of a column's partial sum to the other blocks


def _transport(name: str, source: str, symbol: str, cells: int, shared: int, ways: tuple[Way, ...]) -> Kernel:
    """An iteration of one block, which has `cells` of the cost matrix and a multiprocessor to itself."""
    return Kernel(
        name=f"transport {name}",
        unit="iteration of a block",
        source=source,
        symbol=rf"sinkhorn_kernelI{symbol}Lb0EE",  # costs of features
        ways=ways,
        units=1,
        threads=512,
        dynamic_shared=shared,
        total=ITERATIONS,
        work=_of_one({"fp32": 4 * cells * ITERATIONS}),
        processors=1,
    )


KERNELS = (
    Kernel(
        name="membership, bits",
        unit="32 draws",
        source="membership.cu",
        symbol="membership_kernelILb0ELb1E",
        ways=(Way({"permutation.h .*IMAD": 6, "ATOMS.OR": 1, r" LDG?\.E": 1}),),
        units=ACCEPTED,  # a round is one pass of every lane
        threads=512,
        dynamic_shared=8 * 1024,
        total=BATCH * K / WARP,
        work=membership_work(BATCH, NUM_DATA),
    ),
    _gather("bf16", "NS_4Bf16E", 128, 2, tile_rows=16, multiply_adds=64),
    _gather("fp16", "NS_3F16E", 128, 2, tile_rows=16, multiply_adds=128),
    _gather("fp32", "f", 128, 4, tile_rows=8, multiply_adds=64),
    *(_gather("bf16", "NS_4Bf16E", dim, 2, tile_rows=16, multiply_adds=64) for dim in (104, 96)),
    _gather("fp32", "f", 100, 4, tile_rows=8, multiply_adds=64),
    *(
        kernel
        for critic in ("softmax", "sigmoid")
        for kernel in (
            _gather("bf16", "NS_4Bf16E", 128, 2, tile_rows=16, multiply_adds=64, critic=critic),
            _gather("fp32", "f", 128, 4, tile_rows=8, multiply_adds=64, critic=critic),
        )
    ),
    Kernel(
        name="gather finish, 256 splits",
        unit="split, 32 columns",
        source="bank_finish.cu",
        symbol="gather_finish_kernelIff",
        ways=(Way({r"LDG\.E": 8, "FADD": 8}),),
        units=8,
        threads=512,
        dynamic_shared=528 * 4,
        total=256 * DIM / WARP,  # a block has one anchor and direction
        work=_of_one({"l2": 256 * (DIM + 1) * 4}),
        processors=1,
    ),
    _transport(
        "n=64, one block",
        "sinkhorn_resident.cu",
        "fLi2ELi4ELb0E",
        64 * 64,
        41 * 1024,
        (  # every warp has four rows, two of them have all columns beside
            Way({ROW: 8, COLUMN: 1, "sinkhorn_kept.h .*BAR": 2}, warps=14),
            Way({ROW: 8, COLUMN: 2, "sinkhorn_kept.h .*BAR": 2}, warps=2),
        ),
    ),
    _transport(
        "n=256, 32 blocks of 8 rows",
        "sinkhorn.cu",
        "fLi8ELi1ELb1E",
        8 * 256,
        34 * 1024,
        (  # half of the warps have a row and 32 columns, the others nothing
            Way({ROW: 8, COLUMN: 2, "sinkhorn_columns.h .*BAR": 2, SEND: 1, "sinkhorn_columns.h LDS": 19}, warps=8),
            Way({"sinkhorn_columns.h .*BAR": 2}, warps=8),
        ),
    ),
    _transport(
        "n=1024, 128 blocks of 8 rows",
        "sinkhorn.cu",
        "fLi8ELi4ELb1E",
        8 * 1024,
        80 * 1024,
        (  # half of the warps have four rows of 256 columns; all have 64 columns
            Way({ROW: 32, COLUMN: 3, "sinkhorn_columns.h .*BAR": 2, SEND: 2, "sinkhorn_columns.h LDS": 16}, warps=8),
            Way({COLUMN: 2, "sinkhorn_columns.h .*BAR": 2, SEND: 2, "sinkhorn_columns.h LDS": 16}, warps=8),
        ),
    ),
)
