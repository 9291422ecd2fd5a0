"""Decodes image files to upright 8-bit images; all loaders decode in this way.

- A photo's EXIF orientation is applied.
- 16-bit grey (PNG, PGM, TIFF, JPEG 2000) is scaled so that white, 65535 or the largest value of the TIFF's bits,
  becomes 255. (Pillow alone clips at 255.) 12-bit values in a 16-bit file are dark, since its white is 65535.
- 16-bit colour keeps the upper 8 bits, as Pillow reads it. CMYK is converted without colour profiles.
- Transparency is ignored: a transparent pixel has its stored colour. Only the first frame of an animation is read.
- Floating-point and 32-bit images are refused, since nothing says which value is white.
"""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
from PIL import ExifTags, Image, ImageFile

NAMED = 10  # unreadable files that a message names; the others are counted
CHUNK = 4096  # files that are queued for the threads at a time
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
NOT_DECODED = {"EPS", "MPEG"}  # EPS needs Ghostscript; MPEG is only recognised
BITS, PHOTOMETRIC = 258, 262  # TIFF tags


class Unreadable(ValueError):
    """A file is damaged, or no image that can be used; the message names it."""


@cache
def suffixes() -> frozenset[str]:
    """The suffixes of image files that this Pillow decodes, in lower case."""
    result = Image.registered_extensions()  # loads all of Pillow's formats
    return frozenset(suffix for suffix, name in result.items() if _decodes(name))


def _decodes(name: str) -> bool:
    factory = Image.OPEN.get(name, (None,))[0]
    if name in ("MPO",):  # a file of several JPEGs, of which the first is opened
        return True
    stub = isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)
    return factory is not None and not stub and name not in NOT_DECODED


def read(path: str, mode: str = "RGB") -> Image.Image:
    """The image in `path`, decoded as this module describes.

    Args:
        mode: "RGB", or "L" for grey.

    Raises:
        Unreadable: it is damaged, missing, or of a kind that is refused.
        OSError: the machine failed, not the file (no permission, too many open files).
    """
    try:
        with Image.open(path) as image:
            image.load()
            result = _eight_bits(_upright(image))
            result.info.pop("transparency", None)
            if 0 in result.size:
                raise ValueError("it has no pixels")
            return result if result.mode == mode else result.convert(mode)
    except MemoryError:
        raise
    except Exception as error:  # a damaged image can raise nearly anything
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT, errno.ELOOP):
            raise
        reason = str(error).replace(f" {path!r}", "").rstrip(": ") or type(error).__name__  # the path comes before it
        raise Unreadable(f"{path}: cannot be read as an image: {reason}") from error


def _upright(image: Image.Image) -> Image.Image:
    if image.format == "TIFF":  # Pillow has turned it; some releases keep the tag
        return image
    try:
        turn = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF does not affect the pixels
        return image
    return image.transpose(TURNS[turn]) if turn in TURNS else image


def _eight_bits(image: Image.Image) -> Image.Image:
    """`image` itself, or 16-bit grey as 8-bit grey."""
    is_16_bit = image.mode == "I" and image.format in ("PNG", "PPM")  # in some releases of Pillow
    if not image.mode.startswith("I;16") and not is_16_bit:
        if image.mode in ("I", "F"):
            raise ValueError(f"mode {image.mode}, expected 8 or 16 bits per channel: nothing says which value is white")
        return image
    tags: Mapping[int, object] = getattr(image, "tag_v2", {})
    bits = tags.get(BITS)
    white = 2 ** (bits[0] if isinstance(bits, tuple) else 16) - 1
    grey = np.asarray(image).astype(np.uint32).clip(0, white)
    if tags.get(PHOTOMETRIC) == 0:  # white is zero
        grey = white - grey
    return Image.fromarray(((grey * 255 + white // 2) // white).astype(np.uint8))


def read_all(
    files: Sequence[str], mode: str, use: Callable[[int, Image.Image], None], patience: float = math.inf
) -> tuple[dict[int, str], int]:
    """Call `use(i, image)` for every file that can be read, in threads: Pillow decodes without the interpreter's lock.

    Args:
        patience: seconds after which no further chunk of files is begun.

    Returns:
        {i: reason} of the files that cannot be read, and the number of files that were tried, from the first.
    """

    def read_one(i: int) -> str | None:
        try:
            image = read(files[i], mode)
        except Unreadable as error:
            return str(error)
        use(i, image)
        return None

    unreadable: dict[int, str] = {}
    start = time.monotonic()
    with ThreadPoolExecutor() as pool:
        for first in range(0, len(files), CHUNK):
            chunk = range(first, min(first + CHUNK, len(files)))
            unreadable |= {
                i: reason for i, reason in zip(chunk, pool.map(read_one, chunk), strict=True) if reason is not None
            }
            if time.monotonic() - start > patience:
                return unreadable, chunk.stop
    return unreadable, len(files)


def unreadable_message(reasons: Sequence[str], tried: int, total: int) -> str:
    """A sentence with the number of unreadable files among the first `tried` of `total` ones, and `reasons`."""
    named, more = "; ".join(reasons[:NAMED]), len(reasons) - NAMED
    files = f"{tried:,} image files" if tried == total else f"the first {tried:,} of {total:,} image files"
    rest = f"; and {more:,} more" if more > 0 else ""
    return f"{len(reasons):,} of {files} cannot be read: {named}{rest}"
