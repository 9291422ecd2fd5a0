"""MemoryBank: one feature row per training image."""

from __future__ import annotations

from os import PathLike

import numpy as np
import torch
from torch import Tensor

from ..functional.bank import bank_update_
from ..ops import checks
from ..ops.bank.class_sums import ClassSums
from ..ops.bank.directions import update_rows_
from ..ops.bank.init import bank_init_
from ..ops.bank.sharded import Joined, Shard, held_rows
from .row_buffer import RowBuffer
from .sampler import seed_bits

CHUNK_ROWS = 1 << 16  # rows that are copied from a file at a time


class MemoryBank(RowBuffer):
    """Rows [N, D], one per training image, updated by momentum and kept at unit norm.

    The initial rows are uniform(-s, s), s = 1 / sqrt(D / 3), as in CRD, from a counter-based generator: row r does not
    depend on which part of the bank a process makes.

    Args:
        num_data: N.
        dim: D.
        momentum: weight of the old row in an update, in [0, 1].
        dtype: torch.float32 (default), bfloat16, float16 or float64; arithmetic is fp32 (fp64 for float64).
        seed: 64-bit integer for the initial rows; None takes one from torch's default generator.
        bank_id: distinguishes banks of one seed.
        shard: None, every process holds all rows; or "rank", the rows are split over the ranks of the process group, in
            equal parts of ceil(N / W), and every use of the bank is collective. Rank r makes and stores its own rows
            only, which equal those of one process.

    The rows are a buffer and carry no gradient. In a process group, all ranks must construct it. In a state dict the
    rows of a sharded bank are one DTensor: torch.distributed.checkpoint writes every rank's, and any number of ranks
    reads them. A load accepts this DTensor, all N rows, or the rank's own.
    """

    def __init__(
        self,
        num_data: int,
        dim: int,
        momentum: float = 0.5,
        dtype: torch.dtype = torch.float32,
        *,
        seed: int | None = None,
        bank_id: int = 0,
        shard: str | None = None,
    ):
        super().__init__("num_data", num_data, dim, dtype, shard)
        self.momentum = checks.fraction("momentum", momentum)
        self._seed = seed_bits(seed)
        self._bank_id = checks.integer("bank_id", bank_id, least=0, below=2**32)
        bank_init_(self.rows, self._seed, self._bank_id, self.first_row)
        self._sums: ClassSums | None = None
        self._labels: tuple[Tensor, Tensor] | None = None  # labels of all rows, and of the rows held

    def reset_parameters(self) -> None:
        """Restore the initial rows, from the bank's seed."""
        self._sums = None
        if not self.rows.is_meta:
            bank_init_(self.rows, self._seed, self._bank_id, self.first_row)
            self._empty = {}

    def holds_rank_0s(self) -> bool:
        """Whether the first row held is the initial row 0, which is rank 0's: DDP has copied it here."""
        if self.first_row == 0 or not len(self.rows):
            return False
        first = torch.empty(1, self.dim, dtype=self.rows.dtype)
        bank_init_(first, self._seed, self._bank_id)
        return first.equal(self.rows[:1].cpu())

    @property
    def num_data(self) -> int:
        """N."""
        return self.count

    @torch.no_grad()
    def load_rows_(self, file: str | PathLike) -> MemoryBank:
        """Load the rows from a .npy file, not normalised, rounded to the bank's dtype.

        The file is mapped: a rank reads its own rows only, `CHUNK_ROWS` at a time.

        Args:
            file: float16, float32 or float64 [N, D], of either byte order.
        Raises:
            OSError: the file cannot be read.
            ValueError: the file holds another array, or a row holds NaN or a value that is infinite in the bank's
                dtype; the rows before it have been loaded.
        """
        try:
            source = np.lib.format.open_memmap(file, mode="r")
        except ValueError as error:
            raise ValueError(f"file: {file} is not a .npy file of numbers: {error}") from None
        if source.shape != (self.num_data, self.dim) or source.dtype.kind != "f" or source.dtype.itemsize > 8:
            raise ValueError(
                f"file: expected floats of shape [{self.num_data}, {self.dim}], got {source.dtype} {list(source.shape)}"
            )
        native = source.dtype.newbyteorder("=")
        for lo in range(0, len(self.rows), CHUNK_ROWS):
            hi = min(lo + CHUNK_ROWS, len(self.rows))
            rows = np.array(source[self.first_row + lo : self.first_row + hi], dtype=native)
            chunk = torch.from_numpy(rows).to(self.rows.dtype)
            finite = chunk.isfinite().all(1)
            if not bool(finite.all()):
                row = self.first_row + lo + int(finite.int().argmin())
                raise ValueError(f"file: row {row} holds NaN, or a value that is infinite in {self.rows.dtype}")
            self.rows[lo:hi] = chunk
        self._empty = {}
        return self

    def update_(self, index: Tensor, rows: Tensor, momentum: float | None = None) -> MemoryBank:
        """Rows `index` become normalise(momentum * row + (1 - momentum) * rows); see `functional.bank_update_`."""
        bank_update_(self, index, rows, momentum)
        return self

    def update_joined_(self, joined: Joined, side: int, momentum: float | None = None) -> None:
        """`update_` by anchors `side` of the batch of all ranks, in its order, without communication.

        Replicas stay bit-identical: each makes the update that a single process would make.
        """
        index, rows, held = joined.index, joined.anchors[side], self.held()
        if isinstance(held, Shard):
            index, positions = held_rows(held, joined)
            rows = rows[positions]
        if len(index):
            update_rows_(self, self.rows, index, rows, self.momentum if momentum is None else momentum)

    def class_sums(self, label: Tensor | None, class_start: Tensor | None = None) -> ClassSums:
        """The fp64 sums of the rows of each class, kept up to date by every update from the first call on.

        Args:
            label: int32 [N], class of each row, or None for one class. A shard sums its own rows.
            class_start: [C+1], first rank of each class, as in the class tables of a sampler.
        The sums are rebuilt, in one pass over the bank, after any other write of the rows (a state dict, a move).
        """
        if label is not None and self.ranks.world > 1:
            if self._labels is None or self._labels[0] is not label:
                self._labels = label, label[self.first_row : self.first_row + len(self.rows)]
            label = self._labels[1]
        if self._sums is None or not self._sums.belongs_to(self.rows, label):
            self._sums = ClassSums(self.rows, label, class_start)
        return self._sums

    def current_sums(self) -> ClassSums | None:
        """The sums that an update must change, too, or None if none are kept or they are out of date."""
        if self._sums is None or torch.compiler.is_compiling():
            return None
        return self._sums if self._sums.belongs_to(self.rows, self._sums.label) else None

    def __getstate__(self):
        return super().__getstate__() | {
            "_sums": None,
            "_labels": None,
        }

    def _apply(self, fn, recurse=True):
        self._sums = None  # the rows may become another tensor, with its own count of writes
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args):
        self._sums = None
        super()._load_from_state_dict(*args)

    def extra_repr(self) -> str:
        shard = "" if self.shard is None else f", shard={self.shard!r}"
        return f"num_data={self.num_data}, dim={self.dim}, momentum={self.momentum}, dtype={self.rows.dtype}{shard}"
