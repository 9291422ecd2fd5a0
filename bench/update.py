"""The bank's update alone: row = normalise(momentum * row + (1 - momentum) * embedding), of equal indices the last one.

    python -m bench update [--shapes 64,50000 ...] [--threads 1] [--quick]

Ours by backend, RepDistiller's index_copy_ (which says nothing of an index that occurs twice), the best plain PyTorch
that obeys the rule, and that under torch.compile. Ours alone checks index and rows first, and that is most of its time.
Once without repetitions and once with a quarter of the batch repeated. The whole bank is compared with a float64 loop
over the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench.bank_providers import MOMENTUM, index_copy_update
from bench.contest import Contest, run
from bench.floor import floor_ms
from bench.options import add_shapes, keep, parsed, parser
from wcord_fast import functional as F
from wcord_fast import use_backend

SHAPES = ((64, 50_000), (256, 50_000), (1024, 50_000))
QUICK = (256, 20_000)
REPEATED = (0.0, 0.25)  # share of the batch whose index occurs before
LIMIT = 1e-6  # of a row of length 1
CALLS = 20  # in one timed step: a call takes microseconds


def last_wins(bank: Tensor, index: Tensor, rows: Tensor) -> None:
    """Plain PyTorch: rows that a later one replaces are left out."""
    row = torch.nn.functional.normalize(torch.lerp(rows, bank[index], MOMENTUM), dim=1)
    stays = ~(index[:, None] == index[None]).triu(1).any(1)
    bank.index_put_((torch.where(stays, index, index[-1]),), torch.where(stays[:, None], row, row[-1:]))


class Update:
    """A way to update, with a bank of its own."""

    def __init__(self, bank: Tensor, index: Tensor, rows: Tensor, update: Callable[[Tensor, Tensor, Tensor], object]):
        self.bank = bank.clone()
        self.once = partial(update, self.bank, index, rows)

    def step(self) -> None:
        for _ in range(CALLS):
            self.once()


def answer(bank: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """The bank [N, D] in float64 after an update, row by row."""
    new = bank.double()
    for i, row in zip(index.tolist(), rows.double(), strict=True):
        mixed = MOMENTUM * bank[i].double() + (1 - MOMENTUM) * row
        new[i] = mixed / mixed.norm()
    return new


def contest(batch: int, num_data: int, repeated: float, dim: int = 128) -> Contest:
    """The forms at one size; `repeated` of the batch's indices occur twice."""
    g = torch.Generator().manual_seed(0)
    unit = torch.nn.functional.normalize
    bank, rows = (unit(torch.randn(n, dim, generator=g), dim=1) for n in (num_data, batch))
    index = torch.randperm(num_data, generator=g)[:batch]
    again = int(repeated * batch)
    if again:
        index[-again:] = index[:again]
    expected = answer(bank, index, rows)

    def ours(backend: str) -> Callable[[Tensor, Tensor, Tensor], object]:
        def update(bank: Tensor, index: Tensor, rows: Tensor) -> None:
            with use_backend(backend):
                F.bank_update_(bank, index, rows, MOMENTUM)

        return update

    updates = {
        "naive": lambda: index_copy_update,
        "plain": lambda: last_wins,
        "compile": lambda: torch.compile(last_wins, dynamic=False),
        "native": lambda: ours("native"),
        "reference": lambda: ours("reference"),
    }
    forms = {name: lambda make=make: Update(bank, index, rows, make()) for name, make in updates.items()}

    def errors(form: Update) -> dict[str, float]:
        form.once()
        return {"row": float((form.bank.double() - expected).abs().max())}

    def right(error: dict[str, dict[str, float]]) -> dict[str, bool]:
        return {name: e["row"] <= LIMIT for name, e in error.items()}

    sizes = {"batch": batch, "num_data": num_data, "dim": dim, "repeated": again, "calls": CALLS}
    return Contest(sizes, forms, errors, right, floor=lambda: CALLS * floor_ms(0, 2 * batch * dim * 4))


def quick_contests() -> list[Contest]:
    return [contest(*QUICK, repeated) for repeated in REPEATED]


def main(arguments: list[str]) -> int:
    p = parser("update", __doc__, f"B and N of {QUICK}")
    add_shapes(p, "B,N", SHAPES)
    a = parsed(p, arguments)
    contests = (contest(*shape, repeated, a.dim) for shape in a.shapes for repeated in REPEATED)
    rows, fine = run(quick_contests() if a.quick else contests, a.repeats, a.clock)
    keep("update", rows, a)
    return 0 if fine else 1
