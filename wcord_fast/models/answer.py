"""The logits in what a network answers: a tensor, or an object that holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def logits_of(answer: Any, name: str = "network") -> Tensor:
    """The logits in a network's `answer`: itself, its attribute `logits`, or its item "logits".

    So the outputs of Hugging Face, and of torchvision's Inception and GoogLeNet in training, are taken.

    Args:
        answer: what the network returned.
        name: of the network, for the message.
    Raises:
        TypeError: any other answer, such as a plain tuple, which does not say what is what in it.
    """
    if isinstance(answer, Tensor):
        return answer
    logits = answer.get("logits") if isinstance(answer, Mapping) else getattr(answer, "logits", None)
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"{name}: expected it to answer with logits [B, classes], or with an object that holds them as `.logits` "
            f'or ["logits"], got {_described(answer)}'
        )
    return logits


def class_logits_of(answer: Any, name: str = "network") -> Tensor:
    """`logits_of(answer)`, which must have the shape [B, classes].

    Raises:
        TypeError: no logits in the answer.
        ValueError: logits of another shape.
    """
    logits = logits_of(answer, name)
    if logits.dim() != 2:
        raise ValueError(f"{name}: expected logits [B, classes], got {list(logits.shape)}")
    return logits


def _described(answer: Any) -> str:
    kind = type(answer).__name__
    if isinstance(answer, Mapping):
        return f"{kind} with {', '.join(map(repr, list(answer)[:5])) or 'nothing'}"
    if isinstance(answer, (tuple, list)):
        return f"{kind} of {', '.join(_item(part) for part in answer[:5]) or 'nothing'}"
    return kind


def _item(value: Any) -> str:
    return f"Tensor {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
