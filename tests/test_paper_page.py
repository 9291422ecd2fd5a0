"""docs/paper.md: its options and commands run, and the sums that it makes of published numbers are right."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from wcord_fast import WCoRDLoss, functional
from wcord_fast.cli import table
from wcord_fast.cli.main import main

PAGE = (Path(__file__).parents[1] / "docs/paper.md").read_text()
PAIRS = yaml.safe_load(table.PUBLISHED.read_text())
SAME_ARCHITECTURE = list(PAIRS)[:7]  # Table 1 comes first
NUMBERS = set(re.findall(r"\d+\.\d+", PAGE))
CODE = dict.fromkeys(re.findall(r"`([^`\n]+)`", PAGE))


def test_the_relative_improvement():
    rows = [{name: PAIRS[pair][name][0] for name in ("kd", "crd", "wcord")} for pair in SAME_ARCHITECTURE]
    gains, steps = [r["wcord"] - r["crd"] for r in rows], [r["crd"] - r["kd"] for r in rows]
    mean = 100 * sum(g / s for g, s in zip(gains, steps, strict=True)) / len(rows)
    assert {f"{mean:.1f}", f"{100 * sum(gains) / sum(steps):.1f}"} <= NUMBERS


def commands():
    for command in re.findall(r"`wcord-fast ([^`]*)`", PAGE):
        yield pytest.param(command, marks=[pytest.mark.slow] * ("--pair all" in command))


@pytest.mark.parametrize("command", commands())
def test_the_commands(command, tmp_path, capsys):
    words = shlex.split(command.replace("DIR", str(tmp_path)))
    if words[:2] == ["sweep", "--data"] or words[0] == "crossmodal":  # these read the data before they answer
        pytest.skip("needs images")
    code, output = main([*words, *(() if "--dry-run" in words else ("--dry-run",))]), capsys.readouterr()
    if code == 2 and "torchvision, which is not installed" in output.err:
        pytest.skip("torchvision is not installed")
    assert code == 0 and output.out


@pytest.mark.parametrize("code", [code for code in CODE if re.match(r'\w+="|"', code)])
def test_the_options(code):
    call = ast.parse(f"f({'critic=' if code[0] == chr(34) else ''}{code})", mode="eval").body
    options = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
    if "solver" in options:
        functional.ot_cost(torch.ones(2, 3), torch.ones(2, 3), **options)
    else:
        WCoRDLoss(4, 4, 9, num_negatives=3, **options)
