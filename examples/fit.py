"""Distillation of your own networks on your own DataLoader in five lines: `python examples/fit.py`.

Networks and data set know nothing of this library: a plain `nn.Sequential` as teacher and as student, and
scikit-learn's digits as a `TensorDataset`. The features are taken by forward hooks. With `--output-dir DIR` the same
command goes on where it was interrupted.
"""

import argparse

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from wcord_fast import data, distill


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--method", default="wcord+kd")
    parser.add_argument("--output-dir", default=None)
    options = parser.parse_args()
    torch.manual_seed(0)
    teacher, student = network(32), network(8)
    digits = data.load("digits", image_size=16)
    train_set = TensorDataset(digits.train_images / 127.5 - 1, digits.train_labels)
    test_set = TensorDataset(digits.test_images / 127.5 - 1, digits.test_labels)

    loader = DataLoader(data.Indexed(train_set), batch_size=64, shuffle=True)
    common = {"test_loader": DataLoader(test_set, batch_size=256), "epochs": options.epochs}
    folders = [options.output_dir and f"{options.output_dir}/{name}" for name in ("teacher", "student")]
    distill.fit(teacher, None, loader, "ce", output_dir=folders[0], **common)
    print(distill.fit(student, teacher, loader, options.method, output_dir=folders[1], **common))


def network(width: int) -> nn.Module:
    """A convolutional network for 16x16 images of one channel and ten classes."""
    layers = []
    for before, after in ((1, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * width, 10))


if __name__ == "__main__":
    main()
