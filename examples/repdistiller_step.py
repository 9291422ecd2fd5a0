"""Training steps as RepDistiller's scripts make them, with one import changed: `python examples/repdistiller_step.py`.

The data loader draws the negatives of each image from the other classes and hands their row numbers to the loss, as
RepDistiller's does. Data: scikit-learn's digits, embedded; an untrained teacher; seconds on one core.

`--original DIR` takes a clone of RepDistiller and calls its own loss beside ours: the same weights, banks and negatives
in every step, both values in the output. Its loss needs a CUDA device.
"""

import argparse
import sys

import torch
from torch import Tensor, nn

from wcord_fast import data, models

# RepDistiller: from crd.criterion import CRDLoss
from wcord_fast.repdistiller import CRDLoss


class InstanceSample(torch.utils.data.Dataset):
    """Items (image, label, index, contrast_idx), the last one the index and nce_k rows of other classes."""

    def __init__(self, images: Tensor, labels: Tensor, nce_k: int) -> None:
        self.images, self.labels, self.nce_k = images, labels, nce_k

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int, Tensor]:
        others = (self.labels != self.labels[index]).nonzero().flatten()
        negatives = others[torch.randperm(len(others))[: self.nce_k]]
        return self.images[index], self.labels[index], index, torch.cat((torch.tensor([index]), negatives))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--original", metavar="DIR", help="a clone of RepDistiller")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    digits = data.load("digits", image_size=8)
    model_s = models.create("resnet8", num_classes=10, in_channels=1)
    model_t = models.create("resnet20", num_classes=10, in_channels=1).eval()
    opt = argparse.Namespace(
        s_dim=model_s.feature_dim, t_dim=model_t.feature_dim, feat_dim=128, n_data=len(digits.train_labels),
        nce_k=256, nce_t=0.07, nce_m=0.5, beta=0.8,
    )  # fmt: skip
    train_set = InstanceSample(digits.train_images / 255, digits.train_labels, opt.nce_k)
    loader = torch.utils.data.DataLoader(train_set, batch_size=64, shuffle=True)

    criterion_cls, criterion_kd = nn.CrossEntropyLoss(), CRDLoss(opt)
    module_list = nn.ModuleList([model_s, criterion_kd.embed_s, criterion_kd.embed_t]).to(device)
    optimizer = torch.optim.SGD(module_list.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    model_t.to(device), criterion_kd.to(device)
    original = original_of(options.original, opt, criterion_kd, device) if options.original else None

    for step, batch in zip(range(options.steps), loader, strict=False):
        images, labels, index, contrast_idx = (part.to(device) for part in batch)
        feat_s, logit_s = model_s(images, return_features=True)
        with torch.no_grad():
            feat_t, _ = model_t(images, return_features=True)
        beside = ""
        if original is not None:
            for name in ("embed_s", "embed_t"):  # ours are trained
                getattr(original, name).load_state_dict(getattr(criterion_kd, name).state_dict())
            beside = f", RepDistiller's {original(feat_s[-1], feat_t[-1], index, contrast_idx).item():.4f}"
        loss_kd = criterion_kd(feat_s[-1], feat_t[-1], index, contrast_idx)
        loss = criterion_cls(logit_s, labels) + opt.beta * loss_kd
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: loss {loss.item():.4f}, CRD {loss_kd.item():.4f}{beside}")


def original_of(folder: str, opt: argparse.Namespace, ours: nn.Module, device: torch.device) -> nn.Module:
    """RepDistiller's own loss with the weights and banks of ours."""
    sys.path.insert(0, folder)
    from crd.criterion import CRDLoss as Original

    original = Original(opt).to(device)
    original.load_state_dict(ours.repdistiller_state_dict())  # type: ignore[operator]
    return original


if __name__ == "__main__":
    main()
