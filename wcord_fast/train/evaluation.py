"""Accuracy of a network on the test images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import LazyBatches, TestBatches
from ..distill.modes import eval_mode
from ..models.answer import class_logits_of


@torch.no_grad()
def evaluate(network: nn.Module, batches: TestBatches | LazyBatches, precision: str = "fp32") -> dict[str, float]:
    """Mean cross entropy, and top-1 and top-5 accuracy in percent, in eval mode; every module's mode is restored.

    With fewer than five classes "top5" counts the label among all of them, so it is 100.
    """
    with eval_mode(network):
        return _evaluate(network, batches, precision)


def _evaluate(network: nn.Module, batches: TestBatches | LazyBatches, precision: str) -> dict[str, float]:
    device = batches.dataset.device
    loss = torch.zeros((), dtype=torch.float64, device=device)
    top1 = torch.zeros((), dtype=torch.int64, device=device)
    top5 = torch.zeros_like(top1)
    for images, labels, _ in batches:
        with autocast(device, precision):
            logits = class_logits_of(network(images))
        logits = logits.float()  # [B, C]
        loss += F.cross_entropy(logits, labels, reduction="sum")
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices  # [B, 5]
        hit = best == labels[:, None]
        top1 += hit[:, 0].sum()
        top5 += hit.any(1).sum()
    images_seen = len(batches.dataset.test_labels)
    return {
        "test_loss": float(loss) / images_seen,
        "test_top1": 100 * int(top1) / images_seen,
        "test_top5": 100 * int(top5) / images_seen,
    }


@torch.no_grad()
def predictions(
    network: nn.Module, batches: TestBatches | LazyBatches, precision: str = "fp32"
) -> tuple[Tensor, Tensor]:
    """Logits float32 [N, C] and labels int64 [N] of the test images, on the CPU; in eval mode, which is restored."""
    logits, labels = [], []
    with eval_mode(network):
        for images, wanted, _ in batches:
            with autocast(images.device, precision):
                logits.append(class_logits_of(network(images)))
            labels.append(wanted)
    return torch.cat(logits).float().cpu(), torch.cat(labels).cpu()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 autocast on `device` for precision "bf16"; a context that does nothing for "fp32"."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
