"""CRD in Hugging Face's Trainer: `python examples/hf_trainer.py`.

The model that the Trainer gets holds student, frozen teacher and loss, and returns the sum of the losses. Banks and
draws are in its checkpoints, so that `resume_from_checkpoint` goes on to the bit.
"""

import argparse
import tempfile

import torch
import transformers
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from wcord_fast import CRDLoss, data, models


class Distilled(nn.Module):
    """A student with its teacher and loss, as the Trainer wants a model."""

    def __init__(self, student: nn.Module, teacher: nn.Module, labels: torch.Tensor) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher.requires_grad_(False)
        widths = student.feature_dim, teacher.feature_dim
        self.crd = CRDLoss(*widths, len(labels), nce_k=256, labels=labels, seed=0)

    def forward(self, pixel_values, labels, idx=None):
        """Logits and the loss; without row numbers, when testing, the cross entropy alone."""
        features, logits = self.student(pixel_values, return_features=True)
        loss = F.cross_entropy(logits, labels)
        if idx is not None:
            self.teacher.eval()
            with torch.no_grad():
                features_t, _ = self.teacher(pixel_values, return_features=True)
            loss = loss + 0.4 * self.crd(features[-1], features_t[-1], idx)
        return {"loss": loss, "logits": logits}


class Images(Dataset):
    """Dictionaries of an image, its label and, for training, its row number."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, numbered: bool) -> None:
        self.images, self.labels, self.numbered = images / 127.5 - 1, labels, numbered

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, at: int) -> dict:
        row = {"pixel_values": self.images[at], "labels": self.labels[at]}
        return row | {"idx": torch.tensor(at)} if self.numbered else row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--limit-train", type=int, default=400)
    options = parser.parse_args()
    transformers.set_seed(0)
    digits = data.load("digits", image_size=8, limit_train=options.limit_train)
    student, teacher = (models.create(name, 10, in_channels=1) for name in ("resnet8", "resnet20"))  # yours: trained
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder, num_train_epochs=options.epochs, per_device_train_batch_size=50, learning_rate=0.003,
            save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True, dataloader_drop_last=True,
        )  # fmt: skip
        trainer = transformers.Trainer(
            model=Distilled(student, teacher, digits.train_labels),
            args=arguments,
            train_dataset=Images(digits.train_images, digits.train_labels, numbered=True),
            eval_dataset=Images(digits.test_images, digits.test_labels, numbered=False),
            compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(1) == p.label_ids).mean())},
        )
        trainer.train()
        print(f"accuracy {trainer.evaluate()['eval_accuracy']:.3f}")


if __name__ == "__main__":
    main()
