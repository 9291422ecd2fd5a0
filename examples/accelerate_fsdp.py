"""FSDP2 with Accelerate's loop: `torchrun --nproc-per-node 2 examples/accelerate_fsdp.py`; one process does, too.

`fully_shard` splits the parameters of student and loss over the processes. Accelerate starts them, gives each its part
of every batch and runs backward. The banks are buffers and stay whole in each process; the rows of all are written to
all. On CPUs by gloo, as here, or on GPUs.
"""

import argparse

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from wcord_fast import WCoRDLoss, data, models


class Distilled(nn.Module):
    """Student, frozen teacher and loss: one module, whose forward is the whole loss."""

    def __init__(self, labels: torch.Tensor) -> None:
        super().__init__()
        self.student = models.create("resnet8", 10, in_channels=1)
        self.teacher = models.create("resnet20", 10, in_channels=1).eval().requires_grad_(False)  # yours: trained
        widths = self.student.feature_dim, self.teacher.feature_dim
        self.wcord = WCoRDLoss(*widths, len(labels), num_negatives=256, labels=labels, seed=0)

    def forward(self, images, labels, index):
        features, logits = self.student(images, return_features=True)
        with torch.no_grad():
            features_t, _ = self.teacher(images, return_features=True)
        return F.cross_entropy(logits, labels) + self.wcord(features[-1], features_t[-1], index)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--limit-train", type=int, default=400)
    options = parser.parse_args()
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    torch.manual_seed(0)  # the processes begin with one network
    digits = data.load("digits", image_size=8, limit_train=options.limit_train)
    train_set = TensorDataset(digits.train_images / 127.5 - 1, digits.train_labels)
    model = Distilled(digits.train_labels).to(accelerator.device)
    if accelerator.num_processes > 1:
        fully_shard(model, mesh=init_device_mesh(accelerator.device.type, (accelerator.num_processes,)))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    loader = accelerator.prepare(DataLoader(data.Indexed(train_set), batch_size=25, shuffle=True, drop_last=True))
    for epoch in range(options.epochs):
        model.train()
        model.teacher.eval()
        total = torch.zeros((), device=accelerator.device)
        for images, labels, index in loader:
            loss = model(images, labels, index)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            total += loss.detach()
        mean = accelerator.reduce(total, "mean") / len(loader)
        accelerator.print(f"epoch {epoch + 1}: loss {float(mean):.3f}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
