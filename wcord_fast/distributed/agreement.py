"""Checks, made once, that all ranks built a loss with equal options and hold rows of their own."""

from __future__ import annotations

from itertools import zip_longest

import torch
from torch import nn

from .ranks import gather_rows, not_compiled, sizes_of


@not_compiled
def require_own_rows(overwritten: bool, device: torch.device) -> None:
    """Raise ValueError on every rank if the rows of a bank are `overwritten` on one by rank 0's. Collective."""
    flags = sizes_of(int(overwritten), device)
    if any(flags):
        raise ValueError(
            f"shard: rank {flags.index(1)} holds rank 0's rows, which DistributedDataParallel has copied there; call "
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
