"""Checks, made once, that all ranks built a loss with equal options and hold rows of their own."""

from __future__ import annotations

from itertools import zip_longest

import torch
from torch import Tensor, nn

from .ranks import gather_rows, not_compiled, sizes_of


@not_compiled
def require_own_rows(rows: list[Tensor]) -> None:
    """Raise ValueError on every rank if another one's rows of a bank are rank 0's: DDP has copied those over them.

    Collective. Rows that are all alike, as those of a network that has collapsed, prove nothing.
    """
    for held in rows:
        sizes = sizes_of(min(len(held), 2), held.device)
        (firsts,) = gather_rows([held[:2]], sizes)
        parts = firsts.split(sizes)
        for rank, part in enumerate(parts[1:], 1):
            if len(part) == len(parts[0]) == 2 and part.equal(parts[0]) and not part[0].equal(part[1]):
                raise ValueError(
                    f"shard: rank {rank} holds rank 0's rows, which DistributedDataParallel has copied there; call "
                    "wcord_fast.distributed.exclude_state(model) before it wraps the model"
                )


@not_compiled
def require_agreement(module: nn.Module, facts: list[str], device: torch.device) -> None:
    """Raise ValueError on every rank if `repr(module)` or `facts` differ; it names the first difference.

    Collective: one message of a few hundred bytes.
    """
    message = torch.frombuffer(bytearray("\n".join([repr(module), *facts]).encode()), dtype=torch.uint8).to(device)
    sizes = sizes_of(len(message), device)
    (gathered,) = gather_rows([message], sizes)
    texts = [bytes(part.tolist()).decode().split("\n") for part in gathered.split(sizes)]
    for rank, text in enumerate(texts):
        for line, first in zip_longest(text, texts[0], fillvalue=""):
            if line != first:
                raise ValueError(
                    f"{type(module).__name__}: expected equal options on all ranks, but rank {rank} has "
                    f"{line.strip()!r} where rank 0 has {first.strip()!r}"
                )
