"""The draws of an op's negatives: a plain record that flattens into `torch.library` arguments."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

ALL = -1  # the value of `k` for K = "all"

# source -> the tensors it needs, in order. All live on the bank's device and are contiguous.
#   state       int64 [2]    (seed, step); the seed's bits are a uint64
#   label       int32 [N]    class of each row, 0 .. C-1
#   order       int32 [N]    rows sorted by class, stable
#   rank        int32 [N]    inverse of order
#   class_start int32 [C+1]  first rank of each class
#   threshold   int64 [N]    alias table: keep the column when lo64 < threshold (uint64 bits)
#   alias       int32 [N]    alias table: the other row of the column
TABLES = {
    "given": ("indices",),  # int64 [B, K]
    "none": ("state",),
    "self": ("state",),
    "class": ("state", "label", "order", "rank", "class_start"),
    "weighted": ("state", "threshold", "alias"),
}


@dataclass(frozen=True)
class DrawSpec:
    """The negatives of each anchor.

    Attributes:
        source: "given" (explicit indices), "none", "self", "class" (pools) or "weighted" (alias table).
        k: draws per anchor, or `ALL`.
        replacement: "no", "yes" or "auto" (per anchor: with replacement when K exceeds its pool).
        expected: every pool row once, weighted K / P_b, in place of K draws.
        anchor_offset: global number of the first anchor of this batch.
        tables: the tensors named by `TABLES[source]`.
    """

    source: str
    k: int
    replacement: str
    expected: bool
    anchor_offset: int
    tables: list[Tensor]

    def table(self, name: str) -> Tensor:
        return self.tables[TABLES[self.source].index(name)]

    @property
    def whole_pool(self) -> bool:
        """True when every pool row is scored, so nothing is drawn."""
        return self.k == ALL or self.expected
