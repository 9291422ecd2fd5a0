"""A distillation method of your own beside the library's: `python examples/own_method.py`.

The method reads features and logits of both networks. Its options are a dataclass, its parameters are trained with the
student's. In the command, from the folder of the file:
`cd examples && wcord-fast distill --data digits --methods ce,own_method.Correlation --correlation.weight 2`.
"""

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from wcord_fast import data, distill, models


@dataclass
class CorrelationOptions(distill.Options):
    """Options of the method.

    Attributes:
        weight: of the term.
    """

    weight: float = 1.0


@distill.register("correlation")
class Correlation(distill.Method):
    """The squared difference of the cosine similarities among a batch's images, student against teacher."""

    def __init__(self, pair: distill.Pair, options: CorrelationOptions) -> None:
        super().__init__(pair, options)

    def own_loss(self, student: distill.Outputs, teacher: distill.Outputs, batch: distill.Batch) -> distill.Loss:
        """The term; any width on either side."""
        difference = F.mse_loss(similarities(student.feats[-1]), similarities(teacher.feats[-1]))
        return distill.Loss(self.options.weight * difference, {"correlation": difference.detach()})


def similarities(features: Tensor) -> Tensor:
    """Cosine similarities [B, B] of the rows of features [B, D]."""
    rows = F.normalize(features, dim=1)
    return rows @ rows.T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--limit-train", type=int, default=400)
    options = parser.parse_args()
    torch.manual_seed(0)
    digits = data.load("digits", image_size=8, limit_train=options.limit_train)
    train_set = TensorDataset(digits.train_images / 127.5 - 1, digits.train_labels)
    test_set = TensorDataset(digits.test_images / 127.5 - 1, digits.test_labels)
    loader = DataLoader(data.Indexed(train_set), batch_size=50, shuffle=True)
    common = {"test_loader": DataLoader(test_set, batch_size=256), "epochs": options.epochs}
    teacher = models.create("resnet20", 10, in_channels=1)
    distill.fit(teacher, None, loader, "ce", **common)
    for method, chosen in (("correlation", {"weight": 10.0}), ("correlation+kd", {"weight": 10.0})):
        torch.manual_seed(0)
        student = models.create("resnet8", 10, in_channels=1)
        print(distill.fit(student, teacher, loader, method, method_options=chosen, **common))


if __name__ == "__main__":
    main()
