"""MemoryBank: one feature row per training image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops import checks
from ..ops.bank.class_sums import ClassSums
from ..ops.bank.init import bank_init_
from .sampler import MAX_ROWS, seed_bits


class MemoryBank(nn.Module):
    """Rows [N, D], one per training image, updated by momentum and kept at unit norm.

    Initialised uniform(-s, s), s = 1 / sqrt(D / 3), as CRD does, from a counter-based generator: row r of a bank is
    the same whatever part of the bank is made where.

    Args:
        num_data: N.
        dim: D.
        momentum: weight of the old row in an update, in [0, 1].
        dtype: torch.float32 (default), bfloat16, float16 or float64; arithmetic is fp32 (fp64 for float64).
        seed: 64-bit integer for the initial rows; None takes one from torch's default generator.
        bank_id: distinguishes banks of one seed.

    The rows are a buffer and carry no gradient.
    """

    rows: Tensor

    def __init__(
        self,
        num_data: int,
        dim: int,
        momentum: float = 0.5,
        dtype: torch.dtype = torch.float32,
        *,
        seed: int | None = None,
        bank_id: int = 0,
    ):
        super().__init__()
        self.num_data = checks.integer("num_data", num_data, least=1)
        if self.num_data > MAX_ROWS:
            raise ValueError(f"num_data: expected at most {MAX_ROWS} rows, got {num_data}")
        self.dim = checks.integer("dim", dim, least=1)
        self.momentum = checks.fraction("momentum", momentum)
        if dtype not in checks.FLOATS:
            raise TypeError(f"dtype: expected one of {', '.join(map(str, checks.FLOATS))}, got {dtype}")
        rows = torch.empty(self.num_data, self.dim, dtype=dtype)
        bank_init_(rows, seed_bits(seed), checks.integer("bank_id", bank_id, least=0, below=2**32))
        self.register_buffer("rows", rows)
        self._sums: ClassSums | None = None

    def update_(self, index: Tensor, rows: Tensor, momentum: float | None = None) -> MemoryBank:
        """Rows `index` become normalise(momentum * row + (1 - momentum) * rows); see `functional.bank_update_`."""
        from ..functional import bank_update_

        bank_update_(self, index, rows, momentum)
        return self

    def class_sums(self, label: Tensor | None, num_classes: int) -> ClassSums:
        """The fp64 sums of the rows of each class, kept up to date by every update from the first call on.

        Args:
            label: int32 [N], class of each row, or None for one class.
            num_classes: C.
        Rebuilt, by one pass over the bank, when the rows were written in any other way (a state dict, a move).
        """
        if self._sums is None or not self._sums.belongs_to(self.rows, label):
            self._sums = ClassSums(self.rows, label, num_classes)
        return self._sums

    def current_sums(self) -> ClassSums | None:
        """The sums that an update has to follow, or None if none are kept or they are out of date already."""
        if self._sums is None or torch.compiler.is_compiling():
            return None
        return self._sums if self._sums.belongs_to(self.rows, self._sums.label) else None

    def _apply(self, fn, recurse=True):
        self._sums = None  # the rows may become another tensor, whose count of writes says nothing of these
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args):
        self._sums = None
        super()._load_from_state_dict(*args)

    def extra_repr(self) -> str:
        return f"num_data={self.num_data}, dim={self.dim}, momentum={self.momentum}, dtype={self.rows.dtype}"
