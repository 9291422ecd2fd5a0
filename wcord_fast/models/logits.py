"""The logits in a network's output: a tensor, or an object that holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def logits_of(output: Any, name: str = "network") -> Tensor:
    """The logits in a network's `output`: itself, its attribute `logits`, or its item "logits".

    Outputs of Hugging Face, and of torchvision's Inception and GoogLeNet in training, have one of these forms.

    Args:
        output: return value of the network.
        name: name of the network, for the message.
    Raises:
        TypeError: any other output, such as a plain tuple, in which the logits are not marked.
    """
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"{name}: expected its output to be logits [B, classes], or an object that holds them as `.logits` "
            f'or ["logits"], got {_described(output)}'
        )
    return logits


def class_logits_of(output: Any, name: str = "network") -> Tensor:
    """`logits_of(output)`, which must have the shape [B, classes].

    Raises:
        TypeError: no logits in the output.
        ValueError: logits of another shape.
    """
    logits = logits_of(output, name)
    if logits.dim() != 2:
        raise ValueError(f"{name}: expected logits [B, classes], got {list(logits.shape)}")
    return logits


def _described(output: Any) -> str:
    type_name = type(output).__name__
    if isinstance(output, Mapping):
        return f"{type_name} with {', '.join(map(repr, list(output)[:5])) or 'nothing'}"
    if isinstance(output, (tuple, list)):
        return f"{type_name} of {', '.join(_shape_or_type(part) for part in output[:5]) or 'nothing'}"
    return type_name


def _shape_or_type(value: Any) -> str:
    return f"Tensor {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
