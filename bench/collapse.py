"""Does a critic collapse? Train a student with WCoRD on CIFAR-100 for a short schedule and measure its embeddings.

    python -m bench.collapse --data-dir cifar100.npz --critic nce_sn

trains a small teacher (once; `--teacher FILE` keeps it), then a resnet8 with cross-entropy + WCoRD on a class-balanced
part of the training set, with the rate decay of the recipe, and prints per epoch: accuracy, the norm of the mean
student embedding, the effective rank of a batch of 256 (exp of the entropy of the normalised singular values, Roy and
Vetterli 2007) and the mean cosine of positives and of other-class negatives. Epochs and data are far below the paper's:
the accuracies are not comparable with its tables.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import nn

from bench.results_file import append
from wcord_fast import WCoRDLoss, data, models

BATCH = 64
LIMITS = {"mean_norm": 0.6, "effective_rank": 8.0, "gap": 0.3}  # limits for "has not collapsed"


def effective_rank(e: torch.Tensor) -> float:
    """exp(entropy of the singular values of e [B, D], normalised to sum 1)."""
    s = torch.linalg.svdvals(e.double())
    p = s / s.sum()
    return float(torch.exp(-(p * p.clamp_min(1e-300).log()).sum()))


@torch.no_grad()
def measures(loss_fn, student, teacher, dataset) -> dict[str, float]:
    """Collapse measures on test images: embeddings of both sides, by the networks in eval mode."""
    was = student.training
    student.eval()
    loss_fn.eval()
    e_s, e_t, labels = [], [], []
    for images, y, _ in data.TestBatches(dataset, batch_size=256, channels_last=True):
        e_s.append(loss_fn.embed_s(student(images, return_features=True)[0][-1]))
        e_t.append(loss_fn.embed_t(teacher(images, return_features=True)[0][-1]))
        labels.append(y)
        if len(e_s) == 12:
            break
    rank = sum(effective_rank(e) for e in e_s[:-1]) / (len(e_s) - 1)
    s, t, y = torch.cat(e_s), torch.cat(e_t), torch.cat(labels)
    cosine = s @ t.T
    positive, negative = cosine.diagonal().mean(), cosine[y[:, None] != y[None]].mean()
    student.train(was)
    loss_fn.train()
    return {
        "mean_norm": float(s.mean(0).norm()),
        "effective_rank": rank,
        "positive": float(positive),
        "negative": float(negative),
        "gap": float(positive - negative),
    }


@torch.no_grad()
def accuracy(net, dataset) -> float:
    net.eval()
    right = sum(
        int((net(x).argmax(1) == y).sum()) for x, y, _ in data.TestBatches(dataset, batch_size=500, channels_last=True)
    )
    return 100 * right / len(dataset.test_labels)


def train(net, dataset, epochs, seed, loss_fn=None, teacher=None, after_epoch=None) -> None:
    """SGD as in the published recipe, decays at 5/8, 3/4 and 7/8 of the epochs."""
    parameters = [*net.parameters(), *(loss_fn.parameters() if loss_fn else ())]
    sgd = torch.optim.SGD([p for p in parameters if p.requires_grad], lr=0.05, momentum=0.9, weight_decay=5e-4)
    milestones = [round(epochs * f) for f in (5 / 8, 3 / 4, 7 / 8)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(sgd, milestones, gamma=0.1)
    batches = data.TrainBatches(dataset, batch_size=BATCH, seed=seed, channels_last=True)
    for epoch in range(epochs):
        net.train()
        start = time.perf_counter()
        for images, labels, index in batches.epoch(epoch):
            features, logits = net(images, return_features=True)
            loss = nn.functional.cross_entropy(logits, labels)
            if loss_fn is not None:
                with torch.no_grad():
                    f_t = teacher(images, return_features=True)[0][-1]
                loss = loss + loss_fn(features[-1], f_t, index)
            sgd.zero_grad(set_to_none=True)
            loss.backward()
            sgd.step()
        schedule.step()
        if after_epoch:
            after_epoch(epoch, time.perf_counter() - start)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data-dir", required=True, help="CIFAR-100: the folder of the python pickles, or an .npz")
    p.add_argument("--teacher", type=Path, help="file that holds, or will hold, the teacher's state dict")
    p.add_argument("--teacher-model", default="resnet14")
    p.add_argument("--teacher-epochs", type=int, default=10)
    p.add_argument("--student-model", default="resnet8")
    p.add_argument("--critic", default="nce_sn", choices=("nce_sn", "nce", "dual"))
    p.add_argument("--epochs", type=int, default=10)
    p.add_argument("--images", type=int, default=20_000)
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    dataset = data.load("cifar100", data_dir=a.data_dir, limit_train=a.images)
    torch.manual_seed(a.seed)
    teacher = models.create(a.teacher_model, num_classes=100).to(memory_format=torch.channels_last)
    if a.teacher and a.teacher.exists():
        teacher.load_state_dict(torch.load(a.teacher, weights_only=True))
    else:
        train(
            teacher,
            dataset,
            a.teacher_epochs,
            a.seed,
            after_epoch=lambda e, s: print(f"teacher {e}: {s:.0f} s", flush=True),
        )
        if a.teacher:
            torch.save(teacher.state_dict(), a.teacher)
    teacher.eval().requires_grad_(False)
    teacher_accuracy = accuracy(teacher, dataset)
    print(f"teacher {a.teacher_model}: {teacher_accuracy:.2f} %", flush=True)

    torch.manual_seed(a.seed)
    student = models.create(a.student_model, num_classes=100).to(memory_format=torch.channels_last)
    n = len(dataset.train_labels)
    loss_fn = WCoRDLoss(
        student.feature_dim, teacher.feature_dim, n, critic=a.critic, num_negatives=min(16384, n // 3),
        labels=dataset.train_labels, seed=a.seed,
    )  # fmt: skip
    rows = []

    def after_epoch(epoch: int, seconds: float) -> None:
        row = {"epoch": epoch + 1, "accuracy": accuracy(student, dataset), "seconds": round(seconds, 1)}
        rows.append(row | measures(loss_fn, student, teacher, dataset))
        print("  ".join(f"{k} {v:.3g}" for k, v in rows[-1].items()), flush=True)

    train(student, dataset, a.epochs, a.seed, loss_fn, teacher, after_epoch)
    last = rows[-1]
    collapsed = (
        last["mean_norm"] >= LIMITS["mean_norm"]
        or last["effective_rank"] <= LIMITS["effective_rank"]
        or last["gap"] <= LIMITS["gap"]
    )
    print("collapsed" if collapsed else "not collapsed", LIMITS)
    config = {k: str(v) if isinstance(v, Path) else v for k, v in vars(a).items() if k not in ("data_dir", "teacher")}
    config |= {"teacher_accuracy": teacher_accuracy, "collapsed": collapsed}
    print("written to", append("collapse", [config | row for row in rows]).name)


if __name__ == "__main__":
    main()
