"""`python -m bench recipe`: its commands are accepted, its costs are right, and finished runs are counted."""

import json

import pytest
import torch
from torch import nn

from bench import accuracy, recipe
from bench.accuracy_variants import TUNED
from wcord_fast import models
from wcord_fast.cli.main import main


def options(*words):
    return recipe.parse(["--dry-run", "--device=cpu", *words])


def test_recipe_commands_parse(tmp_path, capsys):
    first, second = recipe.commands(options("--data-dir", str(tmp_path), "--work", str(tmp_path), "--seeds", "3", "4"))
    assert main(["teacher", *first, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "teacher: resnet32x4" in shown and "teacher_epochs: 240" in shown and "limit_train: 50000" in shown
    students = accuracy.parse(second)
    assert (students.student, students.images, students.epochs, students.precision) == (
        "resnet8x4",
        50_000,
        240,
        "fp32",
    )
    assert students.seeds == [3, 4] and students.variants == ["plain", "KD", "CRD", "WCoRD", TUNED]
    assert students.teacher_checkpoint == tmp_path / "teacher_run" / "teacher" / "teacher.pt"


def test_flops_equal_the_sum_over_layers():
    counted = []

    def count(module, inputs, output):
        width = module.weight[0].numel()  # of one product
        counted.append(2 * width * output[0].numel())

    network = models.create(recipe.STUDENT, num_classes=100).eval()
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(count)
    network(torch.zeros(1, 3, 32, 32))
    forward, both = recipe.image_flops(recipe.STUDENT)
    assert forward == sum(counted)
    assert both == 3 * forward - counted[0]  # the images have no gradient


def test_cost_of_a_run_is_proportional_to_its_images():
    costs = recipe.costs(epochs=3, images=10)
    teacher, student = (recipe.image_flops(name) for name in (recipe.TEACHER, recipe.STUDENT))
    tests = 3 * recipe.TEST_IMAGES * student[0]
    assert costs["plain"] == 30 * student[1] + tests  # without the teacher
    assert costs["KD"] == costs[TUNED] == 30 * (student[1] + teacher[0]) + tests
    assert costs["teacher"] == 30 * teacher[1] + 3 * recipe.TEST_IMAGES * teacher[0]


def test_finished_runs_are_counted_with_their_hours(tmp_path):
    row = {"variant": "KD", "student": "resnet8x4", "images": 50_000, "epochs": 240, "seconds": 7200.0}
    others = [row | {"seed": 7}, row | {"seed": 2, "epochs": 20}]
    rows = [row | {"seed": 0}, row | {"seed": 1, "seconds": 3600.0}, *others]
    (tmp_path / "accuracy.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = recipe.plan(options("--out", str(tmp_path), "--work", str(tmp_path), "--step-ms", "20"))
    lines = {line.strip("| ").split(" | ")[0]: line.strip("| ").split(" | ")[1:] for line in text.splitlines()}
    assert lines["KD"][0] == "2 of 5" and lines["KD"][-1] == "1.50" and lines["plain"][0] == "0 of 5"
    assert lines["KD"][1] == f"{240 * 782:,}"  # 782 batches of 64 hold 50,000 images
    assert lines["KD"][3] == f"{240 * 782 * 20 / 3.6e6:.2f}" and lines["teacher"][0] == "0 of 1"
    assert f"24 runs are left: {24 * 240 * 782 * 20 / 3.6e6:.1f} hours" in text
    assert set(lines) >= {"teacher", "plain", "KD", "CRD", "WCoRD", TUNED}


def test_a_run_needs_data_and_a_folder(capsys):
    with pytest.raises(SystemExit):
        recipe.parse([])
    assert "--data-dir and --work" in capsys.readouterr().err
