"""Loggers: by name or dotted path, in a continued run, and when one fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from wcord_fast.cli.config import from_dict
from wcord_fast.extras import MissingExtra
from wcord_fast.train import Logger, fit, loggers

from .train_tiny import config_of, make_run

CALLS: list[tuple] = []


class Noted(Logger):
    """A user's logger."""

    def __init__(self, run):
        super().__init__(run)
        CALLS.append(("begun", run.name, len(run.history), run.spec["method"]))

    def write(self, history):
        CALLS.append(("write", [row["epoch"] for row in history]))

    def close(self):
        CALLS.append(("close",))


class Full(Noted):
    """A logger whose disk is full from the second epoch on."""

    def write(self, history):
        super().write(history)
        if len(history) > 1:
            raise OSError(28, "No space left on device")


@pytest.fixture(autouse=True)
def no_calls():
    CALLS.clear()


def own(cls: type) -> str:
    return f"{__name__}:{cls.__name__}"


def stopped(run, epochs: int) -> list:
    """Train `run` and end it as a kill after `epochs` epochs would."""
    row = run.test
    run.test = _Ending(row, epochs)
    with pytest.raises(KeyboardInterrupt):
        fit(run)
    return run.history


class _Ending:
    """Test batches that are interrupted in the epoch after `left` epochs."""

    def __init__(self, batches, left: int):
        self.batches, self.left = batches, left

    def __iter__(self):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return iter(self.batches)


def test_a_users_logger_follows_a_run_that_goes_on(tmp_path):
    options = {"epochs": 3, "loggers": [own(Noted)]}
    stopped(make_run(tmp_path / "job" / "ce", **options), 2)
    assert CALLS == [("begun", "job/ce", 0, "ce"), ("write", [1]), ("write", [1, 2]), ("close",)]
    CALLS.clear()
    fit(make_run(tmp_path / "job" / "ce", **options))
    assert CALLS == [("begun", "job/ce", 2, "ce"), ("write", [1, 2, 3]), ("close",)]
    CALLS.clear()
    fit(make_run(tmp_path / "job" / "ce", **options))
    assert CALLS == []  # finished earlier
    assert not (tmp_path / "job" / "ce" / "metrics.csv").exists()  # csv was not requested


def test_a_logger_that_fails_ends_and_the_run_does_not(tmp_path, caplog):
    history = fit(make_run(tmp_path, epochs=3, loggers=["csv", own(Full)]))
    assert len(history) == 3 and len((tmp_path / "metrics.csv").read_text().splitlines()) == 4
    assert [call[0] for call in CALLS] == ["begun", "write", "write"]
    assert "no more logs by" in caplog.text and "No space left on device" in caplog.text


def test_the_csv_file_of_a_finished_run_is_written_again(tmp_path):
    fit(make_run(tmp_path, loggers=["csv"]))
    text = (tmp_path / "metrics.csv").read_text()
    (tmp_path / "metrics.csv").unlink()
    fit(make_run(tmp_path, loggers=["csv"]))
    assert (tmp_path / "metrics.csv").read_text() == text and text.count("\n") == 3


def test_tensorboard_is_left_out_by_its_switch():
    config = config_of("--loggers", f"CSV,tensorboard,{own(Noted)}", "--no-tensorboard")
    assert config.chosen_loggers == ["csv", own(Noted)]
    assert config_of().chosen_loggers == ["csv", "tensorboard"]
    assert config_of("--loggers=csv").chosen_loggers == ["csv"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["tensorbord"], "tensorboard"),
        (["csv", "csv"], "csv is named twice"),
        (["no_such.module.Logger"], "cannot be imported"),
        (["math.pi"], "expected 'math.pi' to be a function or a class"),
    ],
)
def test_loggers_that_cannot_be_made_are_refused(given, message):
    with pytest.raises(ValueError, match=message) as caught:
        from_dict({"loggers": given})
    assert str(caught.value).startswith("loggers: ")
    with pytest.raises(TypeError, match="loggers: expected a list"):
        loggers.spelled("csv")


@pytest.mark.parametrize("name", ["wandb", "mlflow", "tensorboard"])
def test_a_missing_package_is_named_with_its_extra(name, monkeypatch):
    monkeypatch.setattr(loggers, "find_spec", lambda package: None)
    extra = {"tensorboard": "train"}.get(name, name)
    with pytest.raises(MissingExtra, match=rf"loggers: '{name}' needs {name}.*wcord-fast\[{extra}\]"):
        loggers.spelled([name])
    with pytest.raises(ValueError, match=rf"wcord-fast\[{extra}\]"):
        from_dict({"loggers": [name]})


def test_wandb_offline(tmp_path):
    pytest.importorskip("wandb")
    done = elsewhere(tmp_path, "wandb", WANDB_MODE="offline", WANDB_SILENT="true")
    logs = list((tmp_path / "job" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(logs) == 2, done  # of the process that was stopped and of the one that went on: one id
    assert {log.stem.removeprefix("run-") for log in logs} == {(tmp_path / "job" / "wandb-id.txt").read_text().strip()}
    content = b"".join(log.read_bytes() for log in logs)
    for word in (b"test_top1", b"wcord", b"milestones"):
        assert word in content


def test_mlflow_in_a_folder(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    store = (tmp_path / "store").as_uri()
    elsewhere(tmp_path, "mlflow", MLFLOW_TRACKING_URI=store, MLFLOW_ALLOW_FILE_STORE="true")
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    client = mlflow.MlflowClient(store)
    (run,) = client.search_runs([client.get_experiment_by_name("wcord_fast").experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_id == (tmp_path / "job" / "mlflow-id.txt").read_text().strip()
    assert run.data.params["method"] == "wcord" and run.data.params["recipe.epochs"] == "3"
    rows = (tmp_path / "job" / "metrics.csv").read_text().splitlines()
    expected = [float(row.split(",")[rows[0].split(",").index("test_top1")]) for row in rows[1:]]
    logged = client.get_metric_history(run.info.run_id, "test_top1")
    assert [(m.step, m.value) for m in logged] == list(enumerate(expected, 1))


TRAIN_TWICE = """
import sys
from pathlib import Path
from tests.test_train_loggers import stopped
from tests.train_tiny import make_run
from wcord_fast.train import fit

options = {"method": "wcord", "epochs": 3, "loggers": ["csv", sys.argv[2]]}
stopped(make_run(Path(sys.argv[1]), **options), 2)
fit(make_run(Path(sys.argv[1]), **options))
"""


def elsewhere(tmp_path: Path, name: str, **env: str) -> str:
    """Run TRAIN_TWICE with the logger `name` in a separate process, so its threads and settings end with it."""
    done = subprocess.run(
        [sys.executable, "-c", TRAIN_TWICE, str(tmp_path / "job"), name],
        cwd=Path(__file__).resolve().parents[1],
        env=os.environ | {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr
