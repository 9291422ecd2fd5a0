"""Accuracy of every method on a part of CIFAR-100, or on digits: paired seeds, collapse measures, gradient shares.

    python -m bench accuracy --data-dir DIR --work FOLDER

The teacher is committed, so that rows of several days and machines belong together: a resnet14 of 53.98 %, made by
`wcord-fast teacher --data cifar100 --data-dir DIR --teacher resnet14 --teacher-epochs 12 --channels-last true`.
For all images there is a better one, of 61.16 %: 30 epochs with `--precision bf16`,

    python -m bench accuracy --data-dir DIR --work FOLDER --images 50000 --epochs 40 --out bench/results/whole
        --teacher-checkpoint bench/results/accuracy_teacher_whole.pt --variants KD "WCoRD only, weight 10"

whose runs take 40 (KD) and 60 minutes each on one core with AVX-512 (bf16 is slow without). On scikit-learn's digits a
run takes seconds; their resnet20 of 98.06 % is that of `wcord-fast distill`:

    python -m bench accuracy --data digits --images 100 --epochs 40 --work FOLDER --out bench/results/digits
        --teacher resnet20 --teacher-checkpoint bench/results/accuracy_teacher_digits.pt --precision fp32
        --seeds 0 1 2 3 4 5 6 7 8 9 --variants plain KD CRD WCoRD "WCoRD only, weight 10"

Every run is a `wcord-fast distill` of one variant and seed in FOLDER/seedS/VARIANT, resumed if it was interrupted and
skipped if its row is in the result file already. Images and epochs are far below the paper's: only the differences
between variants of equal seed say anything, and `python -m bench report` prints them with their intervals.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from bench.accuracy_variants import PUBLISHED, VARIANTS
from bench.collapse import accuracy, effective_rank
from bench.results_file import RESULTS, append, read
from wcord_fast import data, models
from wcord_fast.cli.workbench import create_network
from wcord_fast.train import checkpoint


@torch.no_grad()
def collapse(features: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Collapse measures of penultimate features [T, d] of test images, scaled to unit length.

    The norm of their mean (1: one point), the effective rank of batches of 256, and by how much the cosine of two
    images of one class is above that of two classes.
    """
    unit = torch.nn.functional.normalize(features, dim=1)
    cosine = unit @ unit.T
    same = labels[:, None] == labels[None]
    other = ~same
    same.fill_diagonal_(False)
    return {
        "mean_norm": float(unit.mean(0).norm()),
        "effective_rank": statistics.mean(effective_rank(batch) for batch in unit.split(256) if len(batch) == 256),
        "gap": float(cosine[same].mean() - cosine[other].mean()),
    }


@torch.no_grad()
def measures(folder: Path, student: str, dataset, images: int = 2048) -> dict[str, Any]:
    """Measures of the finished run in `folder`: accuracies, collapse measures, and gradient shares and the plan's mass
    on the pairs of the last epoch and of each (`per_epoch`)."""
    state = checkpoint.load(folder / "checkpoint.pt")
    network = create_network(student, dataset, torch.device("cpu"))
    network.load_state_dict(state["student"])
    network.eval()
    features, labels = [], []
    for x, y, _ in data.TestBatches(dataset, batch_size=256):
        features.append(network(x, return_features=True)[0][-1])
        labels.append(y)
        if len(features) * 256 >= images:
            break
    history = state["history"]
    logged = [key for key in history[-1] if key.startswith("grad_") or key == "lckt_on_pairs"]
    fractions = {key: history[-1][key] for key in logged}
    fractions["per_epoch"] = {key: [round(row[key], 5) for row in history] for key in logged}
    top1 = [row["test_top1"] for row in history]
    result = {"accuracy": top1[-1], "best": max(top1), "seconds": sum(row["seconds"] for row in history)}
    return result | fractions | collapse(torch.cat(features), torch.cat(labels))


def parse(arguments: list[str]) -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m bench accuracy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--data", choices=("cifar100", "digits"), default="cifar100")
    p.add_argument("--data-dir", help="CIFAR-100: the folder of the python pickles, or an .npz")
    p.add_argument("--teacher", default="resnet14")
    p.add_argument("--teacher-checkpoint", type=Path, default=RESULTS / "accuracy_teacher.pt")
    p.add_argument("--student", default="resnet8")
    p.add_argument("--images", type=int, default=10_000)
    p.add_argument("--epochs", type=int, default=20)
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--variants", nargs="+", choices=VARIANTS, default=PUBLISHED)
    p.add_argument("--work", type=Path, required=True, help="folder of the runs")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--precision", choices=("fp32", "bf16"), default="bf16", help="of the networks, not of the losses")
    p.add_argument("--device", default="cpu", help="on cuda every step is a replay of a CUDA graph")
    p.add_argument("--out", type=Path, default=RESULTS)
    p.add_argument("--result-file", default="accuracy", help="name of the .jsonl in --out")
    options = p.parse_args(arguments)
    if options.data == "cifar100" and options.data_dir is None:
        p.error("--data-dir: expected the files of CIFAR-100")
    return options


def main(arguments: list[str]) -> int:
    o = parse(arguments)
    torch.set_num_threads(o.threads)
    dataset = data.load(o.data, data_dir=o.data_dir)
    file = o.teacher_checkpoint / checkpoint.CURRENT if o.teacher_checkpoint.is_dir() else o.teacher_checkpoint
    teacher = create_network(o.teacher, dataset, torch.device("cpu"))
    models.load_weights(teacher, checkpoint.read(file))
    setting = {
        "teacher": o.teacher,
        "teacher_accuracy": accuracy(teacher, dataset),
        "student": o.student,
        "images": o.images,
        "epochs": o.epochs,
        "precision": o.precision,
        **({} if o.data == "cifar100" else {"data": o.data}),
        **({} if o.device == "cpu" else {"trained_on": o.device}),
    }
    for seed in o.seeds:
        for variant in o.variants:
            row = {"subject": "accuracy", "variant": variant, "seed": seed, **setting}
            if any(row.items() <= old.items() for old in read(o.result_file, o.out)):
                continue
            method, options = VARIANTS[variant]
            base = o.work / f"seed{seed}" / variant.replace(" ", "_").replace(",", "")
            fixed = {
                "data": o.data, "limit-train": o.images, "teacher": o.teacher,
                "teacher-checkpoint": o.teacher_checkpoint, "student": o.student, "methods": method,
                "epochs": o.epochs, "seed": seed, "threads": o.threads, "output-dir": base, "tensorboard": "false",
                "precision": o.precision, "channels-last": "true", "quiet": "true",
                "log-grad-norms": "true", "device": o.device, "cuda-graph": str(o.device != "cpu").lower(),
            }  # fmt: skip
            command = [sys.executable, "-m", "wcord_fast", "distill"]
            command += [word for name, value in fixed.items() for word in (f"--{name}", str(value))]
            command += [] if o.data_dir is None else [f"--data-dir={o.data_dir}"]
            command += options
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            row |= measures(base / method, o.student, dataset)
            append(o.result_file, [row], o.out)
            cost = f"{row['seconds']:.0f} s"
            print(f"seed {seed} {variant:20} {row['accuracy']:.2f} % (best {row['best']:.2f}), {cost}", flush=True)
    return 0
