"""A misspelt name is answered with the nearest one, wherever a name can be typed; and a shell can complete them all."""

import re
import shutil
import subprocess
import sys

import pytest

from wcord_fast.cli.completion import all_commands
from wcord_fast.cli.main import main
from wcord_fast.cli.usage import COMMANDS, USAGE

MISSPELT = {
    "distill --methods=wcrd": "wcord",
    "distill --methods=ce,crdd+kd": "crd",
    "distill --teacher=resnet32x5": "resnet32x4",
    "distill --student=ShufleV1": "ShuffleV1",
    "distill --data=cifar1000": "cifar100",
    "distill --config=cifar100_vgg13_vgg9": "cifar100_vgg13_vgg8",
    "distill --wcord.critic=nce_sm": "nce_sn",
    "distill --wcord.critc=nce": "--wcord.critic",
    "distill --wcrd.critic=nce": "--wcord.critic",
    "distill --wcord.ot-solver=sinkhrn": "sinkhorn",
    "distill --precision=bf17": "bf16",
    "distill --compil": "--compile",
    "distill --out=x": "--output-dir",
    "distill --learning-rate=1": "--lr",
    "distill --wcord.lambda1=1": "--wcord.lambda-gckt",
    "distill --wcord.temp=1": "--wcord.temperature",
    "distill --dryrun": "--dry-run",
    "teacher --epocs=3": "--epochs",
    "table --pair=vgg13-vgg9": "vgg13-vgg8",
    "table --pairs=vgg13-vgg8": "--pair",
    "table --buget=0.1": "--budget",
    "table --methods=wcrd": "wcord",
    "evaluate x --per-clas": "--per-class",
    "export x --format=onx": "onnx",
    "completion bsh": "bash",
    "expot": "export",
}


@pytest.mark.parametrize("typed", MISSPELT)
def test_the_nearest_name_is_suggested(typed, capsys):
    assert main(typed.split()) == 2
    output = capsys.readouterr().err
    assert output.endswith(f"did you mean {MISSPELT[typed]!r}?\n") and len(output.splitlines()) == 1


@pytest.mark.parametrize("text, near", {"epocs: 3": "epochs", "wcord:\n  lamda_gckt: 3": "wcord.lambda_gckt"}.items())
def test_nearest_name_is_suggested_for_a_configuration_file(tmp_path, capsys, text, near):
    (tmp_path / "my.yaml").write_text(text)
    assert main(["distill", f"--config={tmp_path / 'my.yaml'}"]) == 2
    assert f"did you mean {near!r}?" in capsys.readouterr().err


def test_distant_name_gets_no_suggestion(capsys):
    assert main(["info", "--zzz"]) == 2
    assert capsys.readouterr().err == "wcord-fast info: unknown option '--zzz'; see --help\n"


def test_every_command_is_listed_and_completed():
    subparsers = next(a for a in all_commands(None, None)._actions if a.choices)
    assert set(subparsers.choices) == set(COMMANDS)
    assert re.findall(r"^  (\w+)", USAGE, re.M) == list(COMMANDS)


def test_without_shtab_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 1
    assert 'pip install "wcord-fast[completion]"' in capsys.readouterr().err


@pytest.mark.skipif(not shutil.which("bash"), reason="runs the script in bash")
def test_bash_completes_commands_options_and_names(tmp_path, capsys):
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "completion.sh"
    script.write_text(capsys.readouterr().out)
    for typed, expected in {
        "wcord-fast di": {"distill"},
        "wcord-fast distill --methods wc": {"wcord", "wcord+kd"},
        "wcord-fast distill --wcord.critic n": {"nce_sn", "nce"},
        "wcord-fast distill --channels": {"--channels-last"},
        "wcord-fast distill --teacher resnet32": {"resnet32", "resnet32x4"},
        "wcord-fast table --pair vgg": {"vgg13-vgg8", "vgg13-MobileNetV2"},
        "wcord-fast export run --format s": {"state_dict", "safetensors"},
    }.items():
        ask = f"source {script}; COMP_WORDS=({typed}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); "
        ask += '_shtab_wcord_fast; echo "${COMPREPLY[@]}"'
        done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
        assert set(done.stdout.split()) == expected, typed
