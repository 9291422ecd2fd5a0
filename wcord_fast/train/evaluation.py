"""Accuracy of a network on the test images."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import Batch
from ..distill.eval_mode import eval_mode
from ..models.logits import class_logits_of


@torch.no_grad()
def evaluate(network: nn.Module, batches: Iterable[Batch], precision: str = "fp32") -> dict[str, float]:
    """Mean cross entropy, and top-1 and top-5 accuracy in percent, in eval mode; every module's mode is restored.

    With fewer than five classes "top5" is 100. Images labelled -100 are left out.

    Raises:
        ValueError: no labelled image in `batches`.
    """
    sums = torch.zeros(4, dtype=torch.float64)  # of cross entropies, top-1 hits, top-5 hits and labelled images
    with eval_mode(network):
        for images, labels, _ in batches:
            with autocast(images.device, precision):
                logits = class_logits_of(network(images))
            logits = logits.float()  # [B, C]
            best = logits.topk(min(5, logits.shape[1]), dim=1).indices  # [B, 5]
            hit = best == labels[:, None]
            loss = F.cross_entropy(logits, labels, reduction="sum")
            counts = (hit[:, 0].sum(), hit.sum(), (labels >= 0).sum())
            sums = sums.to(loss.device) + torch.stack([loss.double(), *(n.double() for n in counts)])
    total, top1, top5, count = sums.tolist()
    if not count:
        raise ValueError("test images: expected at least one with a label, got none")
    return {"test_loss": total / count, "test_top1": 100 * top1 / count, "test_top5": 100 * top5 / count}


@torch.no_grad()
def predictions(network: nn.Module, batches: Iterable[Batch], precision: str = "fp32") -> tuple[Tensor, Tensor]:
    """Logits float32 [N, C] and labels int64 [N] of the test images, on the CPU; computed in eval mode."""
    logits, labels = [], []
    with eval_mode(network):
        for images, batch_labels, _ in batches:
            with autocast(images.device, precision):
                logits.append(class_logits_of(network(images)))
            labels.append(batch_labels)
    return torch.cat(logits).float().cpu(), torch.cat(labels).cpu()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 autocast on `device` for precision "bf16"; a context that does nothing for "fp32"."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
