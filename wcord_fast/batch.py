"""The batches that the loaders yield and the distillation methods take."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """One mini-batch of training or test images.

    It unpacks: `for images, labels, index in batches.epoch(0)`.
    """

    images: Tensor  # [B, C, H, W]
    labels: Tensor  # int64 [B]
    index: Tensor  # type: ignore[assignment]  # int64 [B], the images' rows in their set; hides tuple.index
