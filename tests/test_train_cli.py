"""The command, end to end on the embedded digits with a small budget."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from tests.rank_pool import alone
from tests.test_train_loop import assert_equal, everything
from wcord_fast import data, models
from wcord_fast.cli.main import main
from wcord_fast.train.logs import TIMING

REPO = Path(__file__).resolve().parents[1]
TINY = ["--data=digits", "--image-size=8", "--limit-train=130", "--batch-size=32", "--threads=1", "--teacher=resnet8"]
TINY += ["--teacher-epochs=2", "--epochs=2", "--no-tensorboard"]
WCORD = ["--wcord.num-negatives=20", "--wcord.feat-dim=32"]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of the command as a user types it: in another process, in an empty directory."""
    directory = tmp_path_factory.mktemp("cli")
    done = alone(directory, _main, directory, ["distill", *TINY, *WCORD, "--output-dir=out", "--methods=ce,wcord"])
    assert done.returncode == 0, done.stderr
    return directory / "out", done.stdout


def _main(directory, arguments):
    os.chdir(directory)
    return main(arguments)


def test_distill_ends_with_a_table_and_a_plot(finished):
    out, output = finished
    table = output[output.index("method ") :].splitlines()
    assert [line.split()[:2] for line in table[2:5]] == [
        ["ce", "resnet8"],
        ["wcord", "resnet8"],
        ["teacher", "resnet8"],
    ]
    for line, name in zip(table[2:5], ("ce", "wcord", "teacher"), strict=True):
        with open(out / name / "metrics.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        last, best = (f"{float(rows[-1][c]):.2f}" for c in ("test_top1", "best_top1"))
        assert line.split()[2:4] == [last, best] and len(rows) == 2
        assert float(rows[-1]["best_top1"]) == max(float(row["test_top1"]) for row in rows)
    assert "The test split has 360 images: one image is 0.28 points" in output
    assert (out / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "results.md").read_text().startswith("| method | network |")
    with open(out / "results.csv", newline="") as file:
        assert [row["method"] for row in csv.DictReader(file)] == ["ce", "wcord", "teacher"]
    network = models.create("resnet8", 10, in_channels=1)
    network.load_state_dict(torch.load(out / "wcord" / "student.pt", weights_only=True))


def test_several_seeds_of_students_with_few_images(finished, capsys, tmp_path):
    out, _ = finished
    arguments = [*TINY, *WCORD, "--methods=ce,kd,wcord", f"--teacher-checkpoint={out / 'teacher'}", "--quiet"]
    arguments += ["--limit-student=60", "--seeds=3,0,1", "--epochs=1", f"--output-dir={tmp_path}"]
    assert main(["distill", *arguments]) == 0
    output = capsys.readouterr().out
    last = {}
    for seed in (3, 0, 1):
        for method in ("ce", "kd", "wcord"):
            run = tmp_path / f"seed{seed}" / method
            spec = torch.load(run / "checkpoint.pt", weights_only=True)["spec"]
            assert spec["data"]["train_images"] == spec["data"]["limit_train"] == 60 and spec["recipe"]["seed"] == seed
            with open(run / "metrics.csv", newline="") as file:
                last[method, seed] = float(list(csv.DictReader(file))[-1]["test_top1"])
    with open(tmp_path / "results.csv", newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["ce", "kd", "wcord", "teacher"]
    assert rows["ce"]["minus ce"] == rows["teacher"]["minus ce"] == "-"
    for method in ("ce", "kd", "wcord"):
        mean = sum(last[method, seed] for seed in (3, 0, 1)) / 3
        assert rows[method]["last %"].startswith(f"{mean:.2f} [")
        gain = mean - sum(last["ce", seed] for seed in (3, 0, 1)) / 3
        assert method == "ce" or rows[method]["minus ce"].startswith(f"{gain:+.2f} [")
    output = " ".join(output.split())
    assert "means over 3 seeds" in output and "wcord - kd: " in output and "kd - kd" not in output
    assert main(["distill", *arguments]) == 0  # all are finished
    assert capsys.readouterr().out.count("finished earlier") == 0  # --quiet


@pytest.mark.parametrize(
    "argument, named",
    [
        ("--seeds=1,1", "seeds: expected distinct values"),
        ("--seeds=-1", "seeds: expected"),
        ("--limit-student=0", "limit_student: expected"),
        ("--limit-student=131", "limit_student: expected at most the 130 training images, got 131"),
    ],
)
def test_bad_seeds_and_students_are_named_before_anything_is_trained(capsys, tmp_path, argument, named):
    assert main(["distill", *TINY, argument, f"--output-dir={tmp_path / 'out'}"]) in (1, 2)
    assert named in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("critic", ["infonce", "sigmoid"])
@pytest.mark.parametrize("negatives", ["queue", "batch"])
def test_contrast_without_a_bank_ends_with_a_table(finished, capsys, tmp_path, critic, negatives):
    out, _ = finished
    arguments = [*TINY, *WCORD, "--methods=wcord", "--quiet", f"--teacher-checkpoint={out / 'teacher'}"]
    arguments += [f"--output-dir={tmp_path}", f"--wcord.critic={critic}", f"--wcord.negatives={negatives}"]
    assert main(["distill", *arguments]) == 0
    assert "wcord" in capsys.readouterr().out
    method = torch.load(tmp_path / "wcord" / "checkpoint.pt", weights_only=True)["method"]
    assert ("wcord.paired.queue_s.rows" in method) == (negatives == "queue")
    assert ("wcord.score_map.bias" in method) == (critic == "sigmoid")
    if negatives == "queue":
        rows, pushed = (method[f"wcord.paired.queue_s.{name}"] for name in ("rows", "pushed"))
        assert rows.shape == (20, 32) and int(pushed) == 2 * 130


def test_students_start_from_equal_weights(finished, capsys, tmp_path):
    """Paired: with a zero learning rate in all but name, both students end where both began."""
    out, _ = finished
    still = [*TINY, *WCORD, "--epochs=1", "--lr=1e-30", "--weight-decay=0", f"--output-dir={tmp_path}"]
    assert main(["distill", *still, f"--teacher-checkpoint={out / 'teacher'}", "--methods=ce,crd,wcord"]) == 0
    ends = [torch.load(tmp_path / name / "student.pt", weights_only=True) for name in ("ce", "crd", "wcord")]
    for other in ends[1:]:
        for name, value in ends[0].items():
            torch.testing.assert_close(other[name], value, rtol=0, atol=1e-20)


def test_repeated_command_trains_nothing(finished, capsys):
    out, _ = finished
    before = (out / "wcord" / "checkpoint.pt").read_bytes()
    assert main(["distill", *TINY, *WCORD, f"--output-dir={out}", "--methods=ce,wcord"]) == 0
    output = capsys.readouterr().out
    assert output.count("finished earlier, 2 epochs") == 3
    assert (out / "wcord" / "checkpoint.pt").read_bytes() == before


def test_directory_with_a_different_configuration_is_refused(finished, capsys):
    out, _ = finished
    assert main(["distill", *TINY, *WCORD, f"--output-dir={out}", "--epochs=5", "--quiet"]) == 1
    output = capsys.readouterr().err
    assert "recipe.epochs was 2, now 5" in output and "--output-dir" in output and "--restart" in output
    assert main(["distill", *TINY, f"--output-dir={out}", "--methods=wcord", "--quiet"]) == 1
    assert "method.num_negatives was 20, now None" in capsys.readouterr().err


def test_evaluate_gives_the_accuracy_of_the_last_epoch(finished, capsys):
    out, _ = finished
    with open(out / "wcord" / "metrics.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert main(["evaluate", str(out / "wcord")]) == 0
    output = capsys.readouterr().out
    assert f"top-1 {float(last['test_top1']):.2f} %, top-5 {float(last['test_top5']):.2f} %" in output
    assert "resnet8 (wcord, epoch 2) on 360 test images of digits" in output


def test_evaluate_refuses_unusable_arguments(finished, capsys, tmp_path, monkeypatch):
    out, _ = finished
    (tmp_path / "text.pt").write_text("hello")
    cases = [
        ([str(out / "wcord"), "--data=cifar100"], "its data is 'digits', but --data says 'cifar100'"),
        ([str(out / "wcord" / "student.pt")], "not a checkpoint of this package"),
        ([str(tmp_path / "text.pt")], "damaged or not a PyTorch file"),
        ([str(tmp_path / "nothing.pt")], "no such file"),
    ]
    for arguments, words in cases:
        assert main(["evaluate", *arguments]) == 1
        assert words in capsys.readouterr().err
    other = data.load("digits")
    renamed = type(other)(**{**vars(other), "classes": tuple("abcdefghij")})
    monkeypatch.setattr("wcord_fast.cli.trained_network.load_data", lambda *_, **__: renamed)
    assert main(["evaluate", str(out / "wcord")]) == 1
    assert "trained on 10 classes ['0', '1'" in capsys.readouterr().err


def test_a_teacher_of_another_program_is_loaded(finished, capsys, tmp_path):
    out, _ = finished
    weights = torch.load(out / "teacher" / "teacher.pt", weights_only=True)
    torch.save({"epoch": 240, "model": weights, "best_acc": 1.0}, tmp_path / "theirs.pth")
    arguments = ["distill", *TINY, *WCORD, "--methods=kd", "--epochs=1", f"--output-dir={tmp_path}"]
    assert main([*arguments, f"--teacher-checkpoint={tmp_path / 'theirs.pth'}"]) == 0
    assert not (tmp_path / "teacher").exists()
    table = capsys.readouterr().out
    assert main(["evaluate", str(out / "teacher")]) == 0
    accuracy = capsys.readouterr().out.split("top-1 ")[1].split()[0]
    assert f"teacher   {tmp_path / 'theirs.pth'}: test {accuracy} %" in table
    refused = [*arguments, "--teacher=resnet14", f"--teacher-checkpoint={tmp_path / 'theirs.pth'}"]
    assert main(refused) == 1
    assert "not the weights of --teacher resnet14: does not fit" in capsys.readouterr().err
    assert main([*arguments, "--teacher=resnet14", f"--teacher-checkpoint={out / 'teacher'}"]) == 1
    assert "this teacher was trained with model resnet8, not resnet14" in capsys.readouterr().err


def test_teacher_command_trains_the_teacher_that_distill_uses(capsys, tmp_path):
    assert main(["teacher", *TINY, f"--output-dir={tmp_path}"]) == 0
    assert "teacher  resnet8" in capsys.readouterr().out
    assert main(["distill", *TINY, f"--output-dir={tmp_path}", "--methods=ce", "--epochs=1"]) == 0
    assert "teacher: finished earlier, 2 epochs" in capsys.readouterr().out


@pytest.mark.slow
def test_killed_with_sigkill_and_resumed_equals_the_uninterrupted_run(finished, capsys, tmp_path):
    out, _ = finished
    arguments = ["distill", *TINY, *WCORD, "--epochs=12", "--methods=wcord", "--quiet"]
    arguments += [f"--teacher-checkpoint={out / 'teacher'}"]
    program = [sys.executable, "-m", "wcord_fast", *arguments, "--output-dir=killed"]
    process = subprocess.Popen(program, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(REPO)})
    metrics = tmp_path / "killed" / "wcord" / "metrics.csv"
    deadline = time.monotonic() + 200
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 2):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.03)  # into the next epoch
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = everything(tmp_path / "killed" / "wcord")["epoch"]
    assert 2 <= done < 12
    assert main([*arguments, f"--output-dir={tmp_path / 'killed'}"]) == 0
    assert main([*arguments, f"--output-dir={tmp_path / 'whole'}"]) == 0
    assert_equal(everything(tmp_path / "killed" / "wcord"), everything(tmp_path / "whole" / "wcord"))
    tables = []
    for name in ("killed", "whole"):
        with open(tmp_path / name / "wcord" / "metrics.csv", newline="") as file:
            tables.append([{k: v for k, v in row.items() if k not in TIMING} for row in csv.DictReader(file)])
    assert tables[0] == tables[1] and len(tables[0]) == 12


def test_print_config_is_a_dry_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("--print_config", "--print-config"):
        assert main(["distill", "--epochs=3", name]) == 0
        output = capsys.readouterr().out
        assert "epochs: 3" in output and "lambda_gckt: 0.8" in output
        assert main(["distill", "--epochs=-1", name]) == 2
        assert "epochs: expected an int of at least 1, got -1" in capsys.readouterr().err
    assert main(["distill", "--epochs=3", "--dry-run", "--methods=gckt"]) == 0
    output = yaml.safe_load(capsys.readouterr().out)
    assert output["output_dir"] == "runs/digits_resnet20_resnet8" and output["teacher_epochs"] == 30
    assert main(["distill", "--dry-run", "--methods=wcrd"]) == 2
    assert "did you mean 'wcord'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(output))
    assert main(["distill", "--config=mine.yaml", "--dry-run"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == output


def test_the_main_job_is_few_labels_and_several_seeds(capsys):
    """Without --data and --config; every option can be given beside it."""

    def shown(*argv):
        assert main(["distill", *argv, "--dry-run"]) == 0
        return yaml.safe_load(capsys.readouterr().out)

    job = shown("--epochs=7")
    assert (job["data"], job["limit_student"], job["seeds"], job["epochs"]) == ("digits", 100, [0, 1, 2, 3, 4], 7)
    assert job["methods"] == ["ce", "kd", "wcord", "wcord+kd"] and job["wcord"]["preset"] == "tuned"
    before = shown("--data=digits")
    assert before["limit_student"] is before["seeds"] is None and before["wcord"]["preset"] is None
    assert shown("--config=digits") == before


def test_in_the_teacher_command_epochs_and_lr_are_the_teachers(capsys):
    assert main(["teacher", "--epochs=3", "--lr", "0.2", "--dry-run"]) == 0
    output = yaml.safe_load(capsys.readouterr().out)
    assert output["teacher_epochs"] == 3 and output["teacher_lr"] == 0.2


def test_a_method_that_cannot_run_is_refused_before_anything_is_trained(capsys, tmp_path):
    options = ["--methods=ce,wcord", "--wcord.critic=nce", "--wcord.negatives=batch", f"--output-dir={tmp_path}"]
    assert main(["distill", *TINY, *options]) == 2
    assert "wcord.negatives: 'batch' needs critic=" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_output_directory_that_is_a_file_is_named_in_one_line(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert main(["distill", *TINY, f"--output-dir={tmp_path / 'file'}"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_evaluate_of_the_whole_directory_names_the_runs(finished, capsys):
    out, _ = finished
    assert main(["evaluate", str(out)]) == 1
    assert f"the runs in it: {out / 'ce'}" in capsys.readouterr().err
    assert main(["evaluate", str(out.parent)]) == 1  # as where the runs are in seedS/METHOD
    assert str(out / "ce") in capsys.readouterr().err


@pytest.mark.parametrize("option", ["teacher_checkpoint", "init_student", "init_teacher"])
def test_weights_that_are_not_there_are_named_with_their_option(capsys, tmp_path, option):
    arguments = [*TINY, f"--output-dir={tmp_path}", f"--{option.replace('_', '-')}=nothing.pt", "--quiet"]
    assert main(["distill", *arguments]) == 1
    assert f"{option}: no such file or run's directory, got 'nothing.pt'" in capsys.readouterr().err


def test_mistakes_in_options_are_named_in_one_line(capsys):
    assert main(["distil"]) == 2
    assert "unknown command 'distil'; expected distill, teacher, " in (output := capsys.readouterr().err)
    assert output.endswith("did you mean 'distill'?\n")
    assert main(["distill", "--epocs=3"]) == 2
    assert capsys.readouterr().err == "wcord-fast distill: unknown option '--epocs'; did you mean '--epochs'?\n"
    assert main(["teacher", "--teacher-checkpoint=x"]) == 2
    assert main(["distill", "--data=folder", "--data-dir=/nowhere", "--quiet"]) == 1
    assert "/nowhere" in capsys.readouterr().err
    assert main([]) == 0
    assert "distill" in capsys.readouterr().out


def test_closed_output_pipe_gives_no_traceback():
    program = [sys.executable, "-m", "wcord_fast", "info"]
    running = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    running.stdout.close()
    assert running.stderr.read() == "" and running.wait() == 141


def test_teacher_help_lists_teacher_options_only(capsys):
    shown = {}
    for command in ("teacher", "distill"):
        assert main([command, "--help"]) == 0
        shown[command] = capsys.readouterr().out
    for option in ("--methods", "--student", "--teacher-checkpoint", "--wcord.lambda-gckt", "method wcord"):
        assert option in shown["distill"] and option not in shown["teacher"], option
    for option in ("--teacher ", "--teacher-epochs", "--teacher-lr", "--batch-size", "--data"):
        assert option in shown["teacher"], option
    assert main(["teacher", "--config=digits", "--student=resnet14", "--wcord.ot-eps=2", "--dry-run"]) == 0


def test_info_prints_the_installation(capsys):
    assert main(["info"]) == 0
    assert torch.__version__ in capsys.readouterr().out
