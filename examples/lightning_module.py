"""WCoRD in a Lightning module: `python examples/lightning_module.py`.

The loss is a submodule: its embeddings are trained with the student, and its banks, log Z and draws are in Lightning's
checkpoints. A batch brings each image's row number, which `data.Indexed` adds. The teacher is put in eval mode
before `fit`, and Lightning keeps it there.
"""

import argparse

import lightning.pytorch as lightning
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from wcord_fast import WCoRDLoss, data, models


class Distillation(lightning.LightningModule):
    """A student that learns from labels and from a frozen teacher's features."""

    def __init__(self, teacher: torch.nn.Module, labels: torch.Tensor) -> None:
        super().__init__()
        self.student = models.create("resnet8", 10, in_channels=1)
        self.teacher = teacher.eval().requires_grad_(False)
        widths = self.student.feature_dim, self.teacher.feature_dim
        self.wcord = WCoRDLoss(*widths, len(labels), num_negatives=256, labels=labels, seed=0)

    def training_step(self, batch, _):
        """Cross entropy and WCoRD of (images, labels, row numbers)."""
        images, labels, index = batch
        features, logits = self.student(images, return_features=True)
        with torch.no_grad():
            features_t, _ = self.teacher(images, return_features=True)
        loss = F.cross_entropy(logits, labels) + self.wcord(features[-1], features_t[-1], index)
        self.log_dict({"loss": loss, **self.wcord.terms}, on_step=False, on_epoch=True)
        return loss

    def test_step(self, batch, _):
        """Accuracy of (images, labels)."""
        images, labels = batch
        self.log("accuracy", (self.student(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        """The student's parameters and the loss's own."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--limit-train", type=int, default=400)
    options = parser.parse_args()
    lightning.seed_everything(0)
    digits = data.load("digits", image_size=8, limit_train=options.limit_train)
    train_set = TensorDataset(digits.train_images / 127.5 - 1, digits.train_labels)
    test_set = TensorDataset(digits.test_images / 127.5 - 1, digits.test_labels)
    teacher = models.create("resnet20", 10, in_channels=1)  # of your own, trained
    task = Distillation(teacher, digits.train_labels)
    trainer = lightning.Trainer(
        max_epochs=options.epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(task, DataLoader(data.Indexed(train_set), batch_size=50, shuffle=True, drop_last=True))
    print({name: round(float(value), 3) for name, value in trainer.callback_metrics.items()})
    trainer.test(task, DataLoader(test_set, batch_size=256))


if __name__ == "__main__":
    main()
