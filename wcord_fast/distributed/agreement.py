"""A check, made once, that all ranks built a loss with equal options."""

from __future__ import annotations

from itertools import zip_longest

import torch
from torch import nn

from .ranks import gather_rows, not_compiled, sizes_of


@not_compiled
def require_agreement(module: nn.Module, facts: list[str], device: torch.device) -> None:
    """ValueError, on every rank, that names the first difference between the ranks' `repr(module)` and `facts`.

    Collective: one message of a few hundred bytes.
    """
    own = torch.frombuffer(bytearray("\n".join([repr(module), *facts]).encode()), dtype=torch.uint8).to(device)
    sizes = sizes_of(len(own), device)
    (everyone,) = gather_rows([own], sizes)
    texts = [bytes(part.tolist()).decode().split("\n") for part in everyone.split(sizes)]
    for rank, text in enumerate(texts):
        for line, first in zip_longest(text, texts[0], fillvalue=""):
            if line != first:
                raise ValueError(
                    f"{type(module).__name__}: all ranks must make it alike, but rank {rank} has {line.strip()!r} "
                    f"where rank 0 has {first.strip()!r}"
                )
