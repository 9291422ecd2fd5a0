"""`wcord-fast table`: published numbers, aggregation over seeds, skipped runs, and marks of incomparable results."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
import yaml

from wcord_fast import distill, models
from wcord_fast.cli import table
from wcord_fast.cli.main import main
from wcord_fast.cli.parser import CONFIGS, parse, read_config

TINY = ["--data=digits", "--limit-train=40", "--image-size=8", "--epochs=1", "--quiet", "--no-tensorboard"]
TINY += ["--batch-size=20", "--crd.num-negatives=9"]


def test_published_numbers():
    papers = table.published()
    assert len(papers) == 14 and table.cifar_pairs() == [pair for pair in papers if pair != "resnet34-resnet18"]
    assert papers["resnet32x4-resnet8x4"]["wcord"] == [75.95, 0.11]
    assert papers["wrn_40_2-ShuffleV1"]["wcord+kd"] == [76.68]
    assert papers["vgg13-MobileNetV2"] | {"teacher": [74.64], "ce": [64.6], "at": [59.4]} == papers["vgg13-MobileNetV2"]
    assert "fsp" not in papers["wrn_40_2-wrn_40_1"] and papers["vgg13-vgg8"]["fsp"] == [70.23]
    for pair, rows in papers.items():
        teacher, student = pair.split("-")
        assert {teacher, student} <= set(models.names())
        assert set(rows) <= {*table.all_methods(), "teacher"}


def test_every_pair_has_its_recipe():
    assert {p.stem for p in CONFIGS.glob("cifar100_*.yaml")} == {
        "cifar100_" + pair.replace("-", "_") for pair in table.cifar_pairs()
    }
    for pair in table.cifar_pairs():
        teacher, student = pair.split("-")
        config = read_config({"config": f"{CONFIGS}/cifar100_{teacher}_{student}.yaml"})
        slow = student in ("MobileNetV2", "ShuffleV1", "ShuffleV2")
        assert (config.teacher, config.student, config.epochs, config.batch_size) == (teacher, student, 240, 64)
        assert (config.lr, config.teacher_lr) == (0.01 if slow else 0.05, 0.05)
        assert [round(m * 240) for m in config.milestones] == [150, 180, 210]


def test_the_imagenet_pair():
    assert table.recipe("resnet34-resnet18").stem == "imagenet_resnet34_resnet18"
    text = yaml.safe_load(table.recipe("resnet34-resnet18").read_text())
    assert (text["epochs"], text["batch_size"], text["lr"], text["weight_decay"]) == (100, 256, 0.1, 1e-4)
    assert [round(m * text["epochs"]) for m in text["milestones"]] == [30, 60, 90]
    assert table.published()["resnet34-resnet18"]["wcord"] == [71.49]  # an error of 28.51


def test_methods_all_lists_every_method():
    assert {distill.parse(name)[0] for name in table.all_methods()} == set(distill.names())


def test_spread():
    assert table.mean_and_deviation([70.0]) == "70.00"
    assert table.mean_and_deviation([70.0, 72.0, 71.0]) == "71.00 ± 1.00"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    home = tmp_path_factory.mktemp("table")
    argv = ["table", "--pair=resnet56-resnet20,vgg13-vgg8", "--methods=ce,at,crd+kd", "--seeds=0,3", *TINY]
    assert main([*argv, f"--output-dir={home}"]) == 0
    return home, argv


def test_rows_and_files(finished):
    home, _ = finished
    with open(home / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["pair"], r["method"]) for r in rows] == [
        (pair, method) for pair in ("resnet56-resnet20", "vgg13-vgg8") for method in ("teacher", "ce", "at", "crd+kd")
    ]
    ce = next(r for r in rows if r["method"] == "ce")
    seeds = []
    for seed in (0, 3):
        with open(home / "resnet56-resnet20" / f"seed{seed}" / "ce" / "metrics.csv", newline="") as file:
            seeds.append(float(list(csv.DictReader(file))[-1]["test_top1"]))
    assert ce["ours %"] == table.mean_and_deviation(seeds) and ce["seeds"] == "2" and ce["paper %"] == "69.06"
    assert float(ce["ours - paper"]) == pytest.approx(sum(seeds) / 2 - 69.06, abs=0.006)
    output = (home / "table.txt").read_text()
    assert "NOT COMPARABLE with the paper's numbers: the data set is digits" in output
    assert "40 training images, not all; 1 epochs (teacher 1), not 240" in output
    assert (home / "table.md").read_text().startswith("| pair | method |")


def test_repeated_command_trains_nothing(finished, monkeypatch, capsys):
    home, argv = finished
    before = (home / "table.csv").read_text()
    monkeypatch.setattr("wcord_fast.train.loop.one_epoch", None)
    assert main([*argv, f"--output-dir={home}"]) == 0
    assert (home / "table.csv").read_text() == before
    assert "crd+kd" in capsys.readouterr().out


def test_unsupported_method_is_marked_n_a_with_its_reason(tmp_path, capsys):
    argv = ["table", "--pair=resnet32x4-shufflev1", "--methods=fsp", *TINY, f"--output-dir={tmp_path}"]
    assert main(argv) == 0
    output = capsys.readouterr().out
    assert "fsp" in output and "is n/a. fsp: compares matrices of channels" in output


def test_the_budget_scales_epochs_and_images(tmp_path):
    argv, rest = parse("table", table.TableOptions, ["--budget=0.1", "--data=digits", f"--output-dir={tmp_path}"])
    config = table._config(argv, "vgg13-vgg8", rest)
    assert (config.epochs, config.teacher_epochs, config.limit_train) == (24, 24, 144)
    output = table.not_comparable("vgg13-vgg8", config)
    assert "144 training images, not all; 24 epochs" in output and "gradients are clipped at norm 5" in output
    argv, rest = parse("table", table.TableOptions, [])
    published = table._config(argv, "vgg13-vgg8", rest)
    assert table.not_comparable("vgg13-vgg8", published, 50_000) == ""
    assert "45,000 training images, not 50,000" in table.not_comparable("vgg13-vgg8", published, 45_000)


def test_a_diverging_method_is_reported_and_the_others_go_on(tmp_path, capsys):
    """FitNet at weight 1e38 overflows; the plain student after it is trained."""
    argv = ["table", "--pair=resnet56-resnet20", "--methods=fitnet,ce", *TINY, "--fitnet.weight=1e38"]
    assert main([*argv, f"--output-dir={tmp_path}"]) == 0
    with open(tmp_path / "table.csv", newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert rows["fitnet"]["ours %"] == "diverged" and float(rows["ce"]["ours %"]) > 0
    assert "resnet56-resnet20: fitnet failed with seed 0: the loss term" in capsys.readouterr().out


WRONG = {
    "--pair=vgg13-vgg9": r"pair: .*did you mean 'vgg13-vgg8'",
    "--methods=wcrd": r"methods: .*did you mean 'wcord'",
    "--methods=all,ce": r"methods: expected 'all' alone, or comma-separated methods, got 'all,ce'",
    "--output-dir=": r"output_dir: expected the name of a file or a folder, got ''",
    "--budget=2": r"budget: expected a fraction above 0 and at most 1, got 2",
    "--budget=all": r"budget: expected float, got 'all'",
    "--seeds=0,x": r"seeds: expected int, got 'x'",
    "--seeds=1,1": r"seeds: expected distinct values",
    "--student=resnet20": r"the pair is wrn_40_2-wrn_16_2, got wrn_40_2 and resnet20",
    "--epocs=2": r"unknown option '--epocs'",
}


@pytest.mark.parametrize("word", WRONG)
def test_mistakes_in_options_are_named(word, capsys):
    assert main(["table", word]) == 2
    assert re.search(WRONG[word], capsys.readouterr().err)


def test_help(capsys):
    assert main(["table", "--help"]) == 0
    output = capsys.readouterr().out
    assert "resnet32x4-resnet8x4" in output and "--methods" in output


def test_dry_run_prints_the_recipes_and_finished_runs(tmp_path, capsys):
    argv = ["table", "--pair=vgg13-vgg8,vgg13-MobileNetV2", "--methods=ce,wcord", "--seeds=0,3", "--dry-run"]
    done = tmp_path / "vgg13-vgg8" / "seed3" / "ce"
    done.mkdir(parents=True)
    (done / "student.pt").touch()
    (tmp_path / "vgg13-vgg8" / "seed3" / "wcord").mkdir()  # begun
    assert main([*argv, f"--output-dir={tmp_path}", f"--data-dir={tmp_path}", "--momentum=0.8"]) == 0
    plan = yaml.safe_load(capsys.readouterr().out)
    first, second = plan["pairs"].values()
    assert (first["teacher"], first["student"], first["epochs"], first["momentum"]) == ("vgg13", "vgg8", 240, 0.8)
    assert second == {"student": "MobileNetV2", "lr": 0.01}
    runs = {str(Path(run).relative_to(tmp_path)): state for run, state in plan["runs"].items()}
    assert runs.pop("vgg13-vgg8/seed3/ce") == "finished" and set(runs.values()) == {"to do"}
    assert runs.pop("teachers/vgg13/teacher") and len(runs) == 2 * 2 * 2 - 1
    assert [child.name for child in tmp_path.iterdir()] == ["vgg13-vgg8"]  # nothing is written


def configured(pair, *argv):
    options, rest = parse("table", table.TableOptions, list(argv))
    return table._config(options, pair, rest)


def test_another_recipe_is_not_comparable():
    pair = "vgg13-vgg8"
    changes = ["--lr=0.001", "--batch-size=512", "--optimizer=AdamW", "--schedule=cosine", "--mixup=1"]
    changes += ["--weight-decay=0", "--label-smoothing=0.2", "--precision=bf16"]
    output = table.not_comparable(pair, configured(pair, *changes))
    for text in (
        "lr 0.001, not 0.05",
        "batch_size 512, not 64",
        "optimizer AdamW, not SGD",
        "schedule cosine, not steps",
        "mixup 1, not 0",
        "weight_decay 0, not 0.0005",
        "label_smoothing 0.2, not 0",
        "precision bf16, not fp32",
    ):
        assert text in output
    fast = ["--channels-last", "--seeds=3", "--quiet", "--threads=1", "--eval-batch-size=100"]
    assert table.not_comparable(pair, configured(pair, *fast)) == ""
    assert "init_student is given" in table.not_comparable(pair, configured(pair, "--init-student=there.pt"))
    assert "the teacher's lr 0.01, not 0.05" in table.not_comparable(pair, configured(pair, "--teacher-lr=0.01"))


def test_the_spelling_of_the_data_set_changes_no_recipe(tmp_path):
    assert configured("vgg13-vgg8", "--data=CIFAR-100") == configured("vgg13-vgg8", "--data=cifar100")
    assert configured("vgg13-vgg8", "--data=CIFAR-100").clip_grad is None
    file = tmp_path / "mine.yaml"
    file.write_text("data: digits\nteacher: vgg13\nstudent: vgg8\n")
    assert configured("vgg13-vgg8", f"--config={file}").clip_grad == table.CLIP
    file.write_text("data: digits\nteacher: vgg13\nstudent: vgg8\nclip_grad: 2\n")
    assert configured("vgg13-vgg8", f"--config={file}").clip_grad == 2


def test_pairs_share_the_training_of_their_teacher(tmp_path, monkeypatch, capsys):
    trained = []
    teacher = table.Workbench.teacher
    monkeypatch.setattr(
        table.Workbench, "teacher", lambda self, *rest: trained.append(self.config.directory) or teacher(self, *rest)
    )
    pairs = "--pair=resnet110-resnet20,resnet110-resnet32"
    monkeypatch.setattr(table.Workbench, "student", lambda self, method, teacher: teacher)
    assert main(["table", pairs, "--methods=ce", *TINY, "--restart", f"--output-dir={tmp_path}"]) == 0
    assert len(trained) == 1
    capsys.readouterr()
    assert main(["table", pairs, "--methods=ce", *TINY, f"--output-dir={tmp_path}", "--dry-run"]) == 0
    states = yaml.safe_load(capsys.readouterr().out)["runs"]
    assert [state for run, state in states.items() if "teachers" in run] == ["finished"]
    for option, of_teacher in (("--restart", "to do"), ("--extend", "finished")):  # a teacher is kept
        more = [option, "--epochs=3"]
        assert main(["table", pairs, "--methods=ce", *TINY, f"--output-dir={tmp_path}", "--dry-run", *more]) == 0
        states = yaml.safe_load(capsys.readouterr().out)["runs"]
        assert {state for run, state in states.items() if "teachers" in run} == {of_teacher}
        assert {state for run, state in states.items() if "teachers" not in run} == {"to do"}


def test_an_extended_table_names_the_epochs_of_its_teacher(tmp_path, capsys):
    argv = [
        "table",
        "--pair=resnet110-resnet20",
        "--methods=ce",
        *TINY,
        f"--output-dir={tmp_path}",
        "--teacher=resnet110",
    ]
    assert main(argv) == 0
    again = [option for option in argv if not option.startswith("--epochs")] + ["--extend", "--epochs=2"]
    capsys.readouterr()
    assert main([*again, "--dry-run"]) == 0
    before = set(yaml.safe_load(capsys.readouterr().out)["runs"].values())
    assert before == {"finished", "to do"}
    assert main([*again, "--teacher-epochs=2"]) == 1
    assert "learned from the teacher of 1 epochs" in capsys.readouterr().err
    assert main(again) == 0
    assert "2 epochs (teacher 1), not 240" in capsys.readouterr().out
    assert main([*again, "--dry-run"]) == 0
    assert set(yaml.safe_load(capsys.readouterr().out)["runs"].values()) == {"finished"}
