"""`~` is the home directory wherever a path is read: options, YAML, arguments."""

import pytest
import yaml

from wcord_fast.cli import evaluate, export
from wcord_fast.cli.main import main
from wcord_fast.cli.parser import parse


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    yield tmp_path / "home"
    assert not list((tmp_path / "work").iterdir()), "a folder named ~ was made"


def shown(capsys, *argv):
    assert main([*argv, "--dry-run"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("option", ["output_dir", "data_dir", "teacher_checkpoint"])
def test_options_and_files(option, home, capsys):
    assert shown(capsys, "distill", f"--{option.replace('_', '-')}", "~/x")[option] == f"{home}/x"
    (home / "mine.yaml").write_text(f"{option}: ~/y\n")
    assert shown(capsys, "distill", "--config=~/mine.yaml")[option] == f"{home}/y"


@pytest.mark.slow
def test_the_commands_with_output_directories_of_their_own(home, capsys):
    assert all(run.startswith(f"{home}/t/") for run in shown(capsys, "table", "--output-dir=~/t")["runs"])
    assert shown(capsys, "crossmodal", "--output-dir", "~/c")["crossmodal"]["output_dir"] == f"{home}/c"
    sweep = ["sweep", "--output-dir=~/s", "--teacher-epochs=1", "--epochs=1"]
    assert main([*sweep, "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert f"{home}/s/" in output and "~" not in output


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_checkpoints_and_outputs(command, home, capsys):
    assert main([command, "~/run"]) == 1
    assert f"{home}/run" in capsys.readouterr().err
    own = {"evaluate": evaluate.EvaluateOptions, "export": export.ExportOptions}[command]
    typed = ["~/run", "--data-dir=~/d", *(["--output=~/o"] if command == "export" else [])]
    options, _ = parse(command, own, typed, trains=False)
    assert options.checkpoint == f"{home}/run" and options.data_dir == f"{home}/d"
    assert getattr(options, "output", f"{home}/o") == f"{home}/o"
