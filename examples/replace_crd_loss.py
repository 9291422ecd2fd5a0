"""RepDistiller's CRD in a plain training loop, with the one line replaced: `python examples/replace_crd_loss.py`.

Everything but the line marked below is what a RepDistiller user has already. Data: scikit-learn's digits, embedded. A
teacher of all 1,437 training images, a student of 200 of them without it, and a student with CRD from the same initial
weights; under a minute on one core. One seed decides nothing: `--seed` gives others.
"""

import argparse

import torch
from torch import nn

from wcord_fast import CRDLoss, data, models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--teacher-epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    digits, few = data.load("digits", image_size=8), data.load("digits", image_size=8, limit_train=200)
    torch.manual_seed(options.seed)
    teacher = models.create("resnet20", num_classes=10, in_channels=1)
    print(f"teacher: {train(teacher, digits, options.teacher_epochs, options.seed):.1f} % of the test images")
    teacher.eval().requires_grad_(False)
    print(f"plain student: {train(small(options.seed), few, options.epochs, options.seed):.1f} %")

    student = small(options.seed)
    opt = argparse.Namespace(
        s_dim=student.feature_dim, t_dim=teacher.feature_dim, feat_dim=128, n_data=len(few.train_labels),
        nce_k=100, nce_t=0.07, nce_m=0.5,
    )  # fmt: skip
    # RepDistiller: criterion_kd = CRDLoss(opt)
    criterion_kd = CRDLoss.from_opt(opt, labels=few.train_labels)
    with torch.no_grad():  # not in RepDistiller: few images are over before banks of noise have filled
        for images, _, index in data.TrainBatches(few, batch_size=50, seed=options.seed).epoch(0):
            features = [net(images, return_features=True)[0][-1] for net in (student, teacher)]
            criterion_kd.init_banks(*features, index)
    print(f"student: {train(student, few, options.epochs, options.seed, criterion_kd, teacher):.1f} %")


def small(seed: int) -> nn.Module:
    """The student, with the initial weights of `seed`."""
    torch.manual_seed(seed)
    return models.create("resnet8", num_classes=10, in_channels=1)


def train(
    net: nn.Module, dataset, epochs: int, seed: int, criterion_kd: nn.Module | None = None, teacher=None
) -> float:
    """Cross-entropy, plus 0.4 CRD with a teacher; the test accuracy in percent."""
    parameters = [*net.parameters(), *(criterion_kd.parameters() if criterion_kd else ())]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [max(1, 3 * epochs // 4)])
    batches = data.TrainBatches(dataset, batch_size=32, seed=seed)
    for epoch in range(epochs):
        net.train()
        total = total_kd = 0.0
        for images, labels, index in batches.epoch(epoch):
            features, logits = net(images, return_features=True)
            loss = nn.functional.cross_entropy(logits, labels)
            total += loss.item()
            if criterion_kd is not None:
                with torch.no_grad():
                    features_t, _ = teacher(images, return_features=True)
                loss_kd = criterion_kd(features[-1], features_t[-1], index)
                total_kd += loss_kd.item()
                loss = loss + 0.4 * loss_kd
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        print(f"  epoch {epoch + 1}: cross entropy {total / len(batches):.3f}, CRD {total_kd / len(batches):.3f}")
    net.eval()
    with torch.no_grad():
        right = [(net(x).argmax(1) == y).sum() for x, y, _ in data.TestBatches(dataset, batch_size=256)]
    return 100 * float(sum(right)) / len(dataset.test_labels)


if __name__ == "__main__":
    main()
