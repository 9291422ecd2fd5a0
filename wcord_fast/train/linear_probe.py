"""Linear probes: the test accuracy of a linear classifier on the features of one block of a frozen network."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distill.eval_mode import eval_mode
from .evaluation import autocast

BLOCKS = 4
WIDEST = 1024  # largest number of a probe's features, unless the block has more channels
DECAY = 1e-3  # weight decay: factor of half the squared weights in the mean loss


@torch.no_grad()
def block_features(network: nn.Module, batches: Iterable, precision: str) -> tuple[list[Tensor], Tensor]:
    """Features of the last four blocks, float [N, D_i] each, and labels, int64 [N]; computed in eval mode.

    The blocks are the last four feature maps: four stages, or stem and three stages. Each is averaged over a square
    grid, the finest of 1, 2, 4, 8 cells per side with at most WIDEST features.
    """
    result: list[list[Tensor]] = []
    all_labels = []
    with eval_mode(network):
        for images, labels, _ in batches:
            with autocast(images.device, precision):
                features, _ = network(images, return_features=True)
            maps = [f.float() for f in features if f.dim() == 4][-BLOCKS:]
            if len(maps) < BLOCKS:
                raise ValueError(f"student: expected at least {BLOCKS} feature maps to probe, got {len(maps)}")
            result.append([F.adaptive_avg_pool2d(m, cells(m.shape[1], m.shape[2])).flatten(1) for m in maps])
            all_labels.append(labels)
    return [torch.cat(block) for block in zip(*result, strict=True)], torch.cat(all_labels)


def cells(channels: int, side: int) -> int:
    """Cells per side of a block's grid."""
    return max((c for c in (1, 2, 4, 8) if c <= side and channels * c * c <= WIDEST), default=1)


def probe(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: int, iterations: int = 100) -> float:
    """Test accuracy in percent of multinomial logistic regression on frozen features.

    The result is deterministic: features are standardised by the training images' mean and deviation, weights begin at
    zero, and L-BFGS fits them.

    Args:
        train, test: features [N, D] and labels int64 [N].
        classes: number of classes.
        iterations: largest number of iterations of L-BFGS.
    """
    (x, y), (x_test, y_test) = train, test
    mean, deviation = x.mean(0), x.std(0, correction=0).clamp_min(1e-6)
    x, x_test = (x - mean) / deviation, (x_test - mean) / deviation
    weight = torch.zeros(classes, x.shape[1], device=x.device, requires_grad=True)
    bias = torch.zeros(classes, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=iterations, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(x, weight, bias), y) + DECAY / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)  # type: ignore[arg-type]
    with torch.no_grad():
        hit = F.linear(x_test, weight, bias).argmax(1) == y_test
    return 100 * float(hit.double().mean())
