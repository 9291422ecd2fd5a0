"""RowBuffer: rows in a buffer, all of them on every rank, or each rank's part."""

from __future__ import annotations

import torch
from torch import Tensor

from ..distributed.ranks import Ranks, gather_rows, part_rows, ranks
from ..ops import checks
from ..ops.bank.part import Part
from ..ops.bank.sharded import Shard
from .state import StateModule, whole

MAX_ROWS = 2**31 - 1  # row numbers are int32 in the class tables


class RowBuffer(StateModule):
    """Rows [count, dim] without gradient; `rows` holds this rank's.

    Args:
        name: the caller's name of `count`, for errors.
        count: number of rows on all ranks.
        dim: D.
        dtype: torch.float32, bfloat16, float16 or float64.
        shard: None, every process holds all rows; or "rank", the rows are split over the ranks of the process group, in
            equal parts of ceil(count / W). The last parts are shorter or empty.

    In a state dict the rows of a sharded buffer are one DTensor: torch.distributed.checkpoint writes every rank's, and
    any number of ranks reads them. A load accepts this DTensor, all rows, or the rank's own.
    """

    rows: Tensor  # [n, D]
    keeps_own_state = True  # see distributed.ddp

    def __init__(self, name: str, count: int, dim: int, dtype: torch.dtype, shard: str | None):
        super().__init__()
        self.count = checks.integer(name, count, least=1)
        if self.count > MAX_ROWS:
            raise ValueError(f"{name}: expected at most {MAX_ROWS} rows, got {count}")
        self.dim = checks.integer("dim", dim, least=1)
        if dtype not in checks.FLOATS:
            raise TypeError(f"dtype: expected one of {', '.join(map(str, checks.FLOATS))}, got {dtype}")
        self.shard = checks.choice("shard", shard, (None, "rank"))
        self.ranks = Ranks(0, 1) if shard is None else ranks()
        own = part_rows(self.count, self.ranks)
        self.first_row = own.start
        self.register_buffer("rows", torch.empty(len(own), self.dim, dtype=dtype))

    def held(self) -> Tensor | Shard:
        """The rows [count, D], or the shard that this rank holds."""
        self.require_filled()
        if self.ranks.world == 1:
            return self.rows
        return Shard(self.rows, Part(self.first_row, self.count))

    def all_rows(self) -> Tensor:
        """The rows [count, D]; of a sharded buffer joined from all ranks, which all call it."""
        self.require_filled()
        if self.ranks.world == 1:
            return self.rows
        sizes = [len(part_rows(self.count, Ranks(rank, self.ranks.world))) for rank in range(self.ranks.world)]
        return gather_rows([self.rows], sizes)[0]

    def global_rows(self) -> Tensor:
        """The rows [count, D]; for a sharded buffer a DTensor whose local part is `rows` itself."""
        if self.ranks.world == 1:
            return self.rows
        from torch.distributed.device_mesh import init_device_mesh  # takes a while to import
        from torch.distributed.tensor import DTensor, Shard

        mesh = init_device_mesh(self.rows.device.type, (self.ranks.world,))
        shape = torch.Size((self.count, self.dim))
        return DTensor.from_local(self.rows, mesh, [Shard(0)], run_check=False, shape=shape, stride=(self.dim, 1))

    def own_rows(self, value: Tensor) -> Tensor:
        """This rank's part of `value`, rows from a state dict: all of them, its own, or a DTensor of all."""
        if hasattr(value, "to_local"):
            if self.ranks.world > 1 and value.to_local().shape == self.rows.shape:
                return value.to_local()
            value = whole(value)
        if self.ranks.world > 1 and value.dim() == 2 and len(value) == self.count:
            return value[self.first_row : self.first_row + len(self.rows)]
        return value

    def require_own_group(self) -> None:
        """ValueError if the process group is not the one in which the rows were split."""
        if self.shard is not None and self.ranks != ranks():
            raise ValueError(
                f"shard: the rows were split by rank {self.ranks.rank} of {self.ranks.world}, this is rank "
                f"{ranks().rank} of {ranks().world}; make the loss after init_process_group"
            )

    def holds_rank_0s(self) -> bool:
        """Whether rank 0's rows are known to lie here in the place of this rank's own."""
        return False

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.ranks.world > 1:
            destination[f"{prefix}rows"] = self.global_rows()

    def _load_from_state_dict(self, state_dict, prefix, *args):
        if f"{prefix}rows" in state_dict:
            state_dict[f"{prefix}rows"] = self.own_rows(state_dict[f"{prefix}rows"])
        super()._load_from_state_dict(state_dict, prefix, *args)
