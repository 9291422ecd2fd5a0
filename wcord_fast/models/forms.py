"""Features from module outputs: transformers give tokens, some networks maps with the channels last."""

from __future__ import annotations

import re
from typing import NamedTuple

from torch import Tensor

FORMS = ("map", "class", "mean", "nhwc")


class Tap(NamedTuple):
    """A feature: a module's name, and the form in which its output is taken.

    Attributes:
        module: as in `network.named_modules()`.
        form: "": as it is. Of tokens [B, T, D]: "map" [B, D, h, w], "class" (the first token, [B, D]) or "mean" (of the
            tokens of the map, [B, D]). Of maps [B, H, W, C]: "nhwc" [B, C, H, W].
        extra: tokens before those of the map (class token, registers); None: as few as leave a map of the image's
            aspect ratio.
    """

    module: str
    form: str = ""
    extra: int | None = None

    def take(self, output: Tensor, height: int, width: int) -> Tensor:
        """`output` in this form.

        Args:
            output: of the module.
            height, width: of the images that the network saw.
        Raises:
            ValueError: an output of another shape, or tokens of which no map of that aspect ratio can be made.
        """
        if not self.form:
            return output
        dims = 4 if self.form == "nhwc" else 3
        if output.dim() != dims:
            wanted = "[B, H, W, C]" if dims == 4 else "[B, T, D]"
            raise ValueError(f"features: expected {self.module!r} to give {wanted}, got {list(output.shape)}")
        if self.form == "nhwc":
            return output.permute(0, 3, 1, 2)
        if self.form == "class":
            return output[:, 0]
        h, w = grid(output.shape[1], height, width, self.extra, self.module)
        tokens = output[:, output.shape[1] - h * w :]
        return tokens.mean(1) if self.form == "mean" else tokens.transpose(1, 2).unflatten(2, (h, w))


def tap(text: str) -> Tap:
    """The tap that `text` names: "layer1", or with a form "blocks.2:map", "blocks.2:map5" (five extra tokens), ...

    Raises:
        ValueError: another form.
    """
    module, colon, form = text.partition(":")
    match = re.fullmatch(r"(map|mean)(\d+)", form)
    if match:
        return Tap(module, match[1], int(match[2]))
    if colon and form not in FORMS:
        raise ValueError(f"features: expected a form {', '.join(FORMS)} behind {module!r}, got {form!r}")
    return Tap(module, form)


def grid(tokens: int, height: int, width: int, extra: int | None = None, name: str = "tokens") -> tuple[int, int]:
    """Rows and columns of the map that `tokens` tokens of an image of `height` x `width` make.

    Args:
        tokens: their number, the extra ones included.
        extra: see `Tap`.
        name: of the module, for the message.
    Raises:
        ValueError: they make no such map.
    """
    tried = range(tokens) if extra is None else (extra,)
    for slack in (1, max(height, width)):  # first the images' very aspect ratio, then up to a token
        for before in tried:
            count = tokens - before
            rows = round((count * height / width) ** 0.5) if count > 0 else 0
            if rows and count % rows == 0 and abs(rows * width - count // rows * height) < slack:
                return rows, count // rows
    described = "" if extra is None else f", {extra} of them extra"
    raise ValueError(
        f"features: {name!r} gives {tokens} tokens{described}; expected those of a map of a {height}x{width} image"
    )
