"""Conversion of module outputs to features: transformers return tokens, some networks maps with channels last."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor

FORMS = ("map", "class", "mean", "nhwc")


class Tap(NamedTuple):
    """A feature: a module's name, and the form to which its output is converted.

    Attributes:
        module: name in `network.named_modules()`.
        form: "": unchanged. For tokens [B, T, D]: "map" [B, D, h, w], "class" (the first token, [B, D]) or "mean" (over
            the tokens of the map, [B, D]). For maps [B, H, W, C]: "nhwc" [B, C, H, W].
        extra: number of tokens before those of the map (class token, registers); None: the fewest that leave a map of
            the image's aspect ratio.
    """

    module: str
    form: str = ""
    extra: int | None = None

    def convert(self, output: Tensor, height: int, width: int) -> Tensor:
        """The module's `output` in this form.

        Args:
            output: output of the module.
            height, width: size of the network's input images.
        Raises:
            ValueError: an output of another shape, or tokens of which no map of that aspect ratio can be made.
        """
        if not self.form:
            return output
        dims = 4 if self.form == "nhwc" else 3
        if output.dim() != dims:
            expected = "[B, H, W, C]" if dims == 4 else "[B, T, D]"
            raise ValueError(f"features: expected {self.module!r} to give {expected}, got {list(output.shape)}")
        if self.form == "nhwc":
            return output.permute(0, 3, 1, 2)
        if self.form == "class":
            return output[:, 0]
        h, w = grid(output.shape[1], height, width, self.extra, self.module)
        tokens = output[:, output.shape[1] - h * w :]
        return tokens.mean(1) if self.form == "mean" else tokens.transpose(1, 2).unflatten(2, (h, w))


def tap_names(features: str | Sequence[str]) -> tuple[str, ...]:
    """The names in `features`, one or several; TypeError for anything else."""
    if isinstance(features, str):
        return (features,)
    names = tuple(features) if isinstance(features, Iterable) else None
    if names is None or not all(isinstance(name, str) for name in names):
        raise TypeError(f"features: expected the name of a module or a sequence of names, got {features!r}")
    return names


def parse_tap(text: str) -> Tap:
    """The tap in `text`: "layer1", or with a form "blocks.2:map", "blocks.2:map5" (five extra tokens), ...

    Raises:
        ValueError: an unknown form.
    """
    module, colon, form = text.partition(":")
    match = re.fullmatch(r"(map|mean)(\d+)", form)
    if match:
        return Tap(module, match[1], int(match[2]))
    if colon and form not in FORMS:
        raise ValueError(f"features: expected a form {', '.join(FORMS)} behind {module!r}, got {form!r}")
    return Tap(module, form)


def grid(tokens: int, height: int, width: int, extra: int | None = None, name: str = "tokens") -> tuple[int, int]:
    """Rows and columns of the map that `tokens` tokens make for an image of `height` x `width`.

    Args:
        tokens: number of tokens, the extra ones included.
        extra: see `Tap`.
        name: name of the module, for the message.
    Raises:
        ValueError: the tokens make no map of that aspect ratio.
    """
    extras = range(tokens) if extra is None else (extra,)
    for slack in (1, max(height, width)):  # first exactly the image's aspect ratio, then up to a token
        for skipped in extras:
            count = tokens - skipped
            rows = round((count * height / width) ** 0.5) if count > 0 else 0
            if rows and count % rows == 0 and abs(rows * width - count // rows * height) < slack:
                return rows, count // rows
    described = "" if extra is None else f", {extra} of them extra"
    raise ValueError(
        f"features: {name!r} gives {tokens} tokens{described}; expected those of a map of a {height}x{width} image"
    )
