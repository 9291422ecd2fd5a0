"""The initial rows of a bank, by the fastest backend that can make them (bit-identical on all)."""

from __future__ import annotations

from torch import Tensor

from .. import dispatch
from . import native, reference

_BACKENDS = {"reference": reference.bank_init_, "native": native.bank_init_}


def bank_init_(rows: Tensor, seed: int, bank_id: int, first_row: int = 0, backend: str = "auto") -> None:
    """Fill `rows` [n, D] with rows first_row .. of bank `bank_id`: uniform(-s, s), s = 1 / sqrt(D / 3)."""
    choice = dispatch.resolve("bank_init", device=rows.device, backend=backend)
    _BACKENDS[choice.backend](rows, seed, bank_id, first_row)
