"""`evaluate`: its numbers equal those of scikit-learn and of the training log, on the screen and as JSON."""

import json

import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score, top_k_accuracy_score

from wcord_fast.cli import trained_network as trained
from wcord_fast.cli.config import Config
from wcord_fast.cli.evaluate import measures
from wcord_fast.cli.main import main
from wcord_fast.cli.workbench import Workbench
from wcord_fast.train import checkpoint
from wcord_fast.train.evaluation import predictions

TINY = {"image_size": 8, "batch_size": 10, "tensorboard": False, "quiet": True, "epochs": 2, "limit_train": 60}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("evaluate")
    bench = Workbench(Config(**TINY, teacher="resnet8", student="resnet8", output_dir=str(directory)))
    return bench, bench.student("ce", None), directory / "ce"


def test_measures_equal_scikit_learn():
    g = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(60, 7, generator=g), torch.arange(60) % 7
    actual = measures(logits, labels)
    scores = logits.double().softmax(1).numpy()
    for k, name in ((1, "top1"), (5, "top5")):
        assert actual[name] == pytest.approx(100 * top_k_accuracy_score(labels, scores, k=k))
    assert actual["auc"] == pytest.approx(100 * roc_auc_score(labels, scores, multi_class="ovr"))
    assert actual["loss"] == pytest.approx(log_loss(labels, scores))
    for c, own in enumerate(actual["per_class"]):
        right = logits[labels == c].argmax(1) == c
        assert own == {"images": len(right), "top1": pytest.approx(100 * float(right.double().mean()))}


def test_a_class_without_an_image_has_no_area_and_no_accuracy():
    actual = measures(torch.eye(3), torch.tensor([0, 1, 1]))
    assert actual["auc"] is None and actual["per_class"][2] == {"images": 0, "top1": None}
    assert actual["top1"] == pytest.approx(200 / 3) and actual["top5"] == 100


def test_command_prints_the_accuracy_that_training_logged(finished, capsys):
    bench, result, directory = finished
    last = result.history[-1]
    assert main(["evaluate", str(directory), "--json", "--per-class", "--batch-size=77"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["top1"] == pytest.approx(last["test_top1"]) and output["top5"] == pytest.approx(last["test_top5"])
    assert output["loss"] == pytest.approx(last["test_loss"], rel=1e-5)
    assert (output["model"], output["method"], output["epoch"], output["data"]) == ("resnet8", "ce", 2, "digits")
    assert output["best_top1"] == last["best_top1"]
    images = sum(c["images"] for c in output["per_class"].values())
    assert images == output["test_images"] == len(bench.data.test_labels)
    right = sum(c["images"] * c["top1"] / 100 for c in output["per_class"].values())
    assert right == pytest.approx(output["top1"] / 100 * images)
    assert main(["evaluate", str(directory), "--per-class"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"AUC {output['auc']:.2f} %" in lines[0] and f"best epoch {last['best_top1']:.2f} %" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == ["class", "-----", *"0123456789"]
    assert lines[3].split()[2] == f"{output['per_class']['0']['top1']:.2f}"


def test_without_the_option_no_class_is_listed(finished, capsys):
    assert main(["evaluate", str(finished[2]), "--json"]) == 0
    assert "per_class" not in json.loads(capsys.readouterr().out)


def test_predictions_keep_the_mode_and_their_order(finished):
    bench, _, directory = finished
    network = trained.load(directory).network(1).train()
    logits, labels = predictions(network, bench.test)
    assert network.training and torch.equal(labels, bench.data.test_labels) and logits.dtype == torch.float32
    images, *_ = next(iter(bench.test))
    with torch.no_grad():
        torch.testing.assert_close(logits[: len(images)], network.eval()(images))


def test_a_run_killed_between_two_renames_has_its_checkpoint_named(tmp_path, capsys):
    (tmp_path / "checkpoint.prev.pt").touch()
    assert main(["evaluate", str(tmp_path)]) == 1
    assert f"{tmp_path}/checkpoint.prev.pt is there" in capsys.readouterr().err


def test_no_code_that_a_checkpoint_names_runs_for_another_name(finished, tmp_path, monkeypatch, capsys):
    (tmp_path / "evil_module.py").write_text("raise SystemExit('it ran')\n")
    monkeypatch.syspath_prepend(tmp_path)
    state = checkpoint.load(finished[2] / "checkpoint.pt")
    state["spec"] = {**state["spec"], "data": {**state["spec"]["data"], "name": "evil_module.load"}}
    checkpoint.save(tmp_path, state)
    for options in ([], ["--data=digits"], ["--data=Digits", "--model=ResNet8"]):
        assert main(["evaluate", str(tmp_path), *options]) == 1
        assert "evil_module.load" in capsys.readouterr().err
    assert main(["evaluate", str(finished[2]), "--data=DIGITS", "--model=ResNet8"]) == 0
    assert main(["evaluate", str(finished[2]), "--data=digit"]) == 1
    assert "its data is 'digits', but --data says 'digit'" in capsys.readouterr().err
