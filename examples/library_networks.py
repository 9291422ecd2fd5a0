"""A convolutional student of timm and a vision transformer as its teacher: `python examples/library_networks.py`.

Networks by name map images to their own normalisation and size. A transformer's blocks give token maps, its class token
the penultimate vector. `pretrained=True` takes timm's weights; here both begin at random, and the teacher is trained.
"""

import argparse

import torch
from torch.utils.data import DataLoader, TensorDataset

from wcord_fast import data, distill, models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--limit-train", type=int, default=400)
    parser.add_argument("--student", default="timm:mobilenetv3_small_050")
    parser.add_argument("--teacher", default="timm:vit_tiny_patch16_224@32")
    options = parser.parse_args()
    torch.manual_seed(0)
    digits = data.load("digits", image_size=16, limit_train=options.limit_train)
    statistics = {"mean": digits.mean, "std": digits.std}
    teacher, student = (
        models.create(name, 10, in_channels=1, **statistics) for name in (options.teacher, options.student)
    )

    def normalised(images: torch.Tensor) -> torch.Tensor:
        return (images / 255 - digits.mean[0]) / digits.std[0]

    train_set = TensorDataset(normalised(digits.train_images), digits.train_labels)
    test_set = TensorDataset(normalised(digits.test_images), digits.test_labels)
    loader = DataLoader(data.Indexed(train_set), batch_size=50, shuffle=True)
    common = {"test_loader": DataLoader(test_set, batch_size=256), "epochs": options.epochs, "optimizer": "AdamW"}
    common |= {"lr": 1e-3, "weight_decay": 0.05, "schedule": "cosine"}
    print(distill.fit(teacher, None, loader, "ce", **common))
    print(distill.fit(student, teacher, loader, "wcord+kd", **common))


if __name__ == "__main__":
    main()
