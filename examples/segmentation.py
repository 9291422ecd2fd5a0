"""Dense distillation, for segmentation, with a mask: `python examples/segmentation.py`.

`KDLoss` compares the class probabilities of every pixel. Pixels without a label (255, as in PASCAL VOC and Cityscapes)
count neither for the cross entropy nor for the distillation: the mask leaves them out, and the mean is over the others.
The images are made up: a disc and a square on noise, 20 % of the labels missing.
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wcord_fast import KDLoss

CLASSES, UNLABELLED, SIZE = 3, 255, 24  # background, disc, square


def scenes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images [count, 1, SIZE, SIZE] and labels [count, SIZE, SIZE], one of them UNLABELLED in five."""
    g = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    center = torch.randint(5, SIZE - 5, (count, 2, 2, 1, 1), generator=g)  # of disc and square
    dy, dx = (y - center[:, :, 0]).abs(), (x - center[:, :, 1]).abs()
    labels = torch.zeros(count, SIZE, SIZE, dtype=torch.long)
    labels[dy[:, 0] ** 2 + dx[:, 0] ** 2 <= 16] = 1
    labels[(dy[:, 1] <= 3) & (dx[:, 1] <= 3)] = 2
    images = (labels > 0)[:, None] + 0.5 * torch.randn(count, 1, SIZE, SIZE, generator=g)
    return images, labels.where(torch.rand(labels.shape, generator=g) > 0.2, UNLABELLED)


def network(width: int) -> nn.Module:
    """Logits [B, CLASSES, H, W] from images [B, 1, H, W]."""
    layers: list[nn.Module] = []
    for before in (1, width, width):
        layers += [nn.Conv2d(before, width, 5, padding=2), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(width, CLASSES, 1))


def train(net: nn.Module, images: Tensor, labels: Tensor, epochs: int, teacher: nn.Module | None = None) -> None:
    """Cross entropy and, with a teacher, KD of the labelled pixels."""
    kd = KDLoss(temperature=2.0)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(epochs):
        net.train()
        for x, y in zip(images.split(20), labels.split(20), strict=True):
            logits = net(x)
            loss = F.cross_entropy(logits, y, ignore_index=UNLABELLED)
            if teacher is not None:
                with torch.no_grad():
                    logits_t = teacher(x)
                loss = loss + kd(logits, logits_t, mask=y != UNLABELLED)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.eval()


@torch.no_grad()
def mean_iou(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Intersection over union in percent, the mean over the classes, of the labelled pixels."""
    answer, known = net(images).argmax(1), labels != UNLABELLED
    both = [((answer == c) & (labels == c)).sum() / (((answer == c) | (labels == c)) & known).sum() for c in range(3)]
    return 100 * float(torch.stack(both).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    many, few, test = scenes(200, 0), scenes(40, 1), scenes(100, 2)
    torch.manual_seed(0)
    teacher = network(24)
    train(teacher, *many, options.epochs)
    print(f"teacher, 200 images: {mean_iou(teacher, *test):.1f} %")
    for name, guide in (("student, 40 images", None), ("the same with KD", teacher)):
        torch.manual_seed(1)
        student = network(4)
        train(student, *few, options.epochs, guide)
        print(f"{name}: {mean_iou(student, *test):.1f} %")


if __name__ == "__main__":
    main()
