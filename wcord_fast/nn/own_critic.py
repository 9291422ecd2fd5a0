"""Critics of a user's own for WCoRDLoss: objectives of scores in plain PyTorch, by name or by dotted path."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import torch
from torch import Tensor

from ..dotted import qualified, resolve
from ..ops import checks
from ..ops.bank.sharded import Joined

if TYPE_CHECKING:
    from .contrast import Contrast

Objective: TypeAlias = Callable[[Tensor, Tensor], Tensor]
T = TypeVar("T", bound=Objective)

BUILT_IN = ("nce_sn", "nce", "dual", "infonce", "sigmoid")
OWN: dict[str, Objective] = {}


def critics() -> tuple[str, ...]:
    """The names that `critic` takes, beside dotted paths."""
    return (*BUILT_IN, *OWN)


def register_critic(name: str) -> Callable[[T], T]:
    """A decorator that makes an objective selectable as `critic`, in WCoRDLoss and in the command.

        @nn.register_critic("hinge")
        def hinge(positive, negative):  # [2, B] and [2, B, K]: scores of both directions
            return -(1 + negative - positive[..., None]).relu().mean(-1)  # [2, B], maximised

    A dotted path needs no registration: `wcord-fast distill --wcord.critic my_package.my_module.hinge`. A score is the
    inner product of an anchor and a bank's row; the embeddings have a spectral norm, as "nce_sn" has. The objective
    runs in plain PyTorch on explicit scores, so a step holds 2 * B * K rows of the banks.

    Args:
        name: lower-case letters, digits and "_".
    Raises:
        ValueError: the name is taken, or has other characters.
        TypeError: the objective is not callable.
    """

    def decorate(objective: T) -> T:
        if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ValueError(f"name: expected lower-case letters, digits and '_', got {name!r}")
        if not callable(objective):
            raise TypeError(f"{name}: expected a function of positive and negative scores, got {objective!r}")
        registered = OWN.get(name)
        if name in BUILT_IN or (registered is not None and qualified(registered) != qualified(objective)):
            raise ValueError(f"name: {name!r} is taken")
        OWN[name] = objective
        return objective

    return decorate


def checked_critic(name: str, value: str) -> str:
    """`value`, if it is a critic's name or the dotted path of an objective, which is imported."""
    if isinstance(value, str) and value not in OWN and ("." in value or ":" in value):
        OWN[value] = resolve(name, value)
    return checks.choice(name, value, critics())


def each_score(
    contrast: Contrast, anchors: Tensor, idx: Tensor, contrast_idx: Tensor | None, joined: Joined | None
) -> tuple[Tensor, Tensor]:
    """Scores of the positives [2, B] and of every negative [2, B, K] of anchors [2, B, D], in plain PyTorch."""
    if contrast_idx is None:
        rows = contrast.sampler.draw(idx, 0 if joined is None else joined.own.start)
        positive = idx
    else:
        positive, rows = contrast_idx[:, 0], contrast_idx[:, 1:].long()
    positives = contrast.rows_at(positive, joined).to(anchors.dtype)  # [2, B, D]
    negatives = torch.stack([bank[rows] for bank in contrast.banks()]).to(anchors.dtype)  # [2, B, K, D]
    return (anchors * positives).sum(-1), torch.einsum("sbd,sbkd->sbk", anchors, negatives)


def value_of(objective: Objective, positive: Tensor, negative: Tensor) -> Tensor:
    """The objective [2, B] of scores [2, B] and [2, B, K].

    Raises:
        TypeError, ValueError: the objective returns anything else.
    """
    value = objective(positive, negative)
    if not isinstance(value, Tensor):
        raise TypeError(f"critic: expected {qualified(objective)} to give a tensor, got {type(value).__name__}")
    if value.shape != positive.shape:
        expected = list(positive.shape)
        raise ValueError(f"critic: expected {qualified(objective)} to give {expected}, got {list(value.shape)}")
    return value
