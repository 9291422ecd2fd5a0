"""A network of each library, at random, is a teacher and a student of the command for an epoch of the digits."""

from __future__ import annotations

import csv
import math

import pytest

from wcord_fast.cli.main import main
from wcord_fast.models.torchvision_import import torchvision_models

SMALL = "--data digits --limit-train 40 --batch-size 20 --epochs 1 --teacher-epochs 1 --no-tensorboard --quiet"


def tiny_of_transformers(folder):
    import transformers

    config = transformers.ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 2, 1], num_labels=10)
    transformers.ConvNextForImageClassification(config).save_pretrained(folder)
    return f"hf:{folder}@32"


@pytest.mark.parametrize("library", ["torchvision", "timm", "hf"])
@pytest.mark.parametrize("more", ["", "--gradient-checkpointing"])
def test_a_network_of_each_library_teaches_and_learns(library, more, tmp_path):
    try:
        torchvision_models(library)  # which all of them import where it is there
    except ImportError as error:
        pytest.skip(str(error))
    pytest.importorskip({"hf": "transformers"}.get(library, library))
    named = {
        "torchvision": lambda: "torchvision:shufflenet_v2_x0_5@32",
        "timm": lambda: "timm:test_convnext@32",
        "hf": lambda: tiny_of_transformers(tmp_path / "hf"),
    }[library]()
    for role, other in (("teacher", "--student resnet8"), ("student", "--teacher resnet8")):
        methods = "ce" if role == "teacher" else "wcord+kd"
        folder = tmp_path / role
        text = f"distill {SMALL} --{role} {named} {other} --methods {methods} --output-dir {folder} {more}"
        assert main(text.split()) == 0
        with open(folder / "teacher" / "metrics.csv") as teachers, open(folder / methods / "metrics.csv") as students:
            rows = [*csv.DictReader(teachers), *csv.DictReader(students)]
        assert len(rows) == 2 and all(math.isfinite(float(row["loss"])) for row in rows)
        assert all(0 <= float(row["test_top1"]) <= 100 for row in rows)
