"""`wcord-fast evaluate`: accuracy and AUC of a checkpoint on the test images."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import data as datasets
from .. import models
from ..train.evaluation import predictions
from ..train.metrics import auc
from ..train.tables import text_table
from . import trained_network as trained
from .config import require_device
from .options import check_paths, devices
from .parser import parse


@dataclass
class EvaluateOptions:
    """Top-1, top-5 and AUC of a checkpoint on the test images of the data set that it was trained on.

    Attributes:
        checkpoint: a checkpoint.pt, or the directory of a run.
        model: refuse a checkpoint of another network; a network of your own (a dotted path) has to be named.
        data: refuse a checkpoint that was trained on another data set; one of your own has to be named.
        data_dir: where the data set's files are.
        batch_size: images per forward pass.
        device: auto, cpu, cuda or cuda:N.
        per_class: also print the top-1 accuracy of every class.
        json: print one JSON object instead.
    """

    checkpoint: Annotated[str, "file"]
    model: Annotated[str | None, models.names] = None
    data: Annotated[str | None, datasets.names] = None
    data_dir: Annotated[str | None, "directory"] = None
    batch_size: int = 500
    device: Annotated[str, devices] = "auto"
    per_class: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        check_paths(self, "checkpoint", "data_dir")


def run(argv: list[str]) -> None:
    """Print a checkpoint's accuracy and AUC."""
    options, _ = parse("evaluate", EvaluateOptions, argv, trains=False)
    loaded = trained.load(Path(options.checkpoint), model=options.model, data=options.data)
    device = require_device(options.device)
    data = loaded.dataset(options.data_dir).to(device)
    network = loaded.network(data.channels).to(device)
    measured = measures(*predictions(network, datasets.test_batches(data, options.batch_size), loaded.precision))
    per_class = measured.pop("per_class")
    best = next((row.get("best_top1") for row in loaded.history[-1:]), None)
    if options.json:
        report = {"checkpoint": str(loaded.path), "model": loaded.model, "method": loaded.method, "epoch": loaded.epoch}
        report |= {"data": data.name, "test_images": len(data.test_labels), **measured, "best_top1": best}
        if options.per_class:
            report["per_class"] = dict(zip(loaded.classes, per_class, strict=True))
        print(json.dumps(report))
        return
    auc_text = "n/a (a class without a test image)" if measured["auc"] is None else f"{measured['auc']:.2f} %"
    print(
        f"{loaded.model} ({loaded.method}, epoch {loaded.epoch}) "
        f"on {len(data.test_labels):,} test images of {data.name}: "
        f"top-1 {measured['top1']:.2f} %, top-5 {measured['top5']:.2f} %, AUC {auc_text}"
        + (f"; best epoch {best:.2f} %" if best is not None else "")
    )
    if options.per_class:
        lines = [
            {
                "class": name,
                "images": str(row["images"]),
                "top-1 %": "-" if row["top1"] is None else f"{row['top1']:.2f}",
            }
            for name, row in zip(loaded.classes, per_class, strict=True)
        ]
        print(text_table(lines))


def measures(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Mean cross entropy; top-1, top-5 and AUC in percent (AUC is None if a class has no image); top-1 per class."""
    hit = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]  # [N, 5]
    images = torch.bincount(labels, minlength=logits.shape[1])
    correct = torch.bincount(labels[hit[:, 0]], minlength=logits.shape[1])
    complete = bool((images > 0).all()) and logits.shape[1] > 1
    return {
        "loss": float(F.cross_entropy(logits.double(), labels)),
        "top1": 100 * int(hit[:, 0].sum()) / len(hit),  # as in training, to the bit
        "top5": 100 * int(hit.any(1).sum()) / len(hit),
        "auc": auc(logits, labels) if complete else None,
        "per_class": [
            {"images": n, "top1": 100 * r / n if n else None}
            for n, r in zip(images.tolist(), correct.tolist(), strict=True)
        ],
    }
