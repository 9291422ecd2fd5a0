"""Two towers trained from scratch on pairs of views, without a bank: `python examples/two_tower.py`.

One tower sees the upper half of a digit, the other the lower half (`--views colour --data cifar100 --data-dir DIR`:
luminance and chrominance). Negatives are the other images of the batch. The towers are judged by retrieval: for each
upper half of the test set, is the lower half with the nearest embedding that of its image? Data: scikit-learn's digits,
embedded; half a minute on one core.

On two processes: `torchrun --nproc-per-node 2 examples/two_tower.py`. Each takes its part of every batch and
`scope="global"` scores it against the parts of all: losses are those of one process, to rounding.
"""

import argparse

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from wcord_fast import data
from wcord_fast import functional as F


class Towers(nn.Module):
    """An encoder for each view, [B, C, H, W] -> unit rows [B, 64]."""

    def __init__(self, channels: tuple[int, int], size: tuple[int, int]):
        super().__init__()
        self.first, self.second = (tower(c, size) for c in channels)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return nn.functional.normalize(self.first(first)), nn.functional.normalize(self.second(second))


def tower(channels: int, size: tuple[int, int]) -> nn.Sequential:
    height, width = ((n + 3) // 4 for n in size)
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(64 * height * width, 64),
    )  # fmt: skip


def views(images: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Both views of uint8 images [N, C, H, W], as floats."""
    pixels = images.float() / 255 - 0.5
    if kind == "halves":
        half = images.shape[2] // 2
        return pixels[:, :, :half], pixels[:, :, half : 2 * half]
    luminance = (pixels * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    return luminance, pixels[:, ::2] - luminance  # red and blue less luminance


def standardised(pair: tuple[Tensor, Tensor], scales: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Views less the training images' mean and over their deviation by channel: colours alone differ too little."""
    return [(view - mean) / deviation for view, (mean, deviation) in zip(pair, scales, strict=True)]


@torch.no_grad()
def retrieval(towers: nn.Module, first: Tensor, second: Tensor) -> float:
    """Percent of the first views whose nearest second view is that of their own image."""
    x, y = towers(first, second)
    return 100 * float(((x @ y.T).argmax(1) == torch.arange(len(x))).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-dir")
    parser.add_argument("--views", choices=("halves", "colour"), default="halves")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not dist.is_torchelastic_launched():
        train(options, 0, 1)
        return
    dist.init_process_group("gloo")
    train(options, dist.get_rank(), dist.get_world_size())
    dist.destroy_process_group()  # after the DDP wrapper is gone: a wrapper that ends after its group may hang


def train(options: argparse.Namespace, rank: int, world: int) -> None:
    """Train both towers on this rank's part of every batch; rank 0 prints."""
    where = {} if options.data_dir is None else {"data_dir": options.data_dir}
    images = data.load(options.data, **(where or {"image_size": 8}))
    first, second = views(images.train_images, options.views)
    scales = [(view.mean((0, 2, 3), keepdim=True), view.std((0, 2, 3), keepdim=True)) for view in (first, second)]
    first, second = standardised((first, second), scales)
    torch.manual_seed(options.seed)
    towers = Towers((first.shape[1], second.shape[1]), (first.shape[2], first.shape[3]))
    model = DistributedDataParallel(towers) if world > 1 else towers
    optimizer = torch.optim.AdamW(towers.parameters(), lr=2e-3)
    draws = torch.Generator().manual_seed(options.seed)  # equal on all processes
    for epoch in range(options.epochs):
        order = torch.randperm(len(first), generator=draws)
        for batch in order.split(options.batch_size):
            own = batch[rank::world]
            x, y = model(first[own], second[own])
            losses = F.batch_infonce(x, y, temperature=0.1, scope="global")  # [B_rank]
            loss = losses.sum() * world / len(batch)  # DDP takes the mean over processes
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        last = loss.detach() / world
        if world > 1:
            dist.all_reduce(last)
        if rank == 0:
            print(f"epoch {epoch + 1}: loss of the last batch {last:.4f}")
    if rank == 0:
        tested = standardised(views(images.test_images, options.views), scales)
        print(f"retrieval among {len(tested[0])} test images: {retrieval(towers, *tested):.1f} %")
        print(f"by chance: {100 / len(tested[0]):.2g} %")


if __name__ == "__main__":
    main()
