"""The harness of bench: a failed or wrong form gets no ratio, --quick writes nothing, failures are named."""

from __future__ import annotations

import functools
import itertools
import json
import subprocess
from dataclasses import dataclass

import pytest
import torch

from bench import __main__ as command
from bench import critic, floor, options, update
from bench.contest import Contest, fine, measure, show
from wcord_fast.ops import native_module

needs_native = pytest.mark.skipif(native_module.load() is None, reason="no native module")


@dataclass
class Fake:
    error: float

    def step(self) -> None:
        sum(range(1000))


def contest(**forms):
    def make(name):
        if isinstance(forms[name], str):
            raise RuntimeError(forms[name] + "\nand more")
        return Fake(forms[name])

    makers = {name: lambda name=name: make(name) for name in forms}
    floors = itertools.cycle((3e-3, 1e-3))  # the second time nothing was in the way
    right = lambda errors: {name: e["value"] < 0.1 for name, e in errors.items()}  # noqa: E731
    return Contest({"n": 3}, makers, lambda form: {"value": form.error}, right, floor=lambda: next(floors))


def test_ratios_are_between_right_forms_only(capsys):
    case = contest(naive=0.0, plain=0.5, compile="no compiler", ours=0.01, off=0.2)
    rows = {row["form"]: row for row in measure(case, 3)}
    assert rows["ours"]["times_naive"] > 0 and rows["ours"]["floor_ms"] == 1e-3
    assert "times_plain" not in rows["ours"] and "times_naive" not in rows["off"]
    assert rows["compile"]["failed"] == "RuntimeError: no compiler" and "ms" not in rows["compile"]
    show(case, list(rows.values()))
    text = capsys.readouterr().out
    assert "fails: RuntimeError: no compiler" in text and text.count("WRONG") == 2


@pytest.mark.parametrize(
    ("forms", "good"),
    [({"plain": 0.5, "ours": 0.0}, True), ({"ours": 0.5}, False), ({"ours": "broken"}, False), ({"plain": "x"}, True)],
)
def test_the_contest_fails_only_if_ours_is_wrong(forms, good):
    case = contest(**forms)
    assert fine(case, measure(case, 1)) is good


@needs_native
def test_critic_forms_agree_with_float64_and_do_not_change_the_banks():
    case = critic.contest((4, 64, 1000), 16)
    forms = {name: make() for name, make in case.forms.items() if name != "compile"}
    assert all(case.right({name: case.errors(form) for name, form in forms.items()}).values())
    again = {name: case.errors(form) for name, form in forms.items()}  # a second step sees the same banks
    assert len(forms) == 6 and all(case.right(again).values())


@needs_native
@pytest.mark.parametrize("repeated", update.REPEATED)
def test_update_forms_let_the_last_duplicate_win(repeated):
    case = update.contest(16, 100, repeated, 8)
    forms = {name: make() for name, make in case.forms.items() if name not in ("compile", "naive")}
    assert all(case.right({name: case.errors(form) for name, form in forms.items()}).values())
    assert case.sizes["repeated"] == int(repeated * 16)


def test_update_that_keeps_the_first_duplicate_fails_the_gate():
    def first_wins(bank, index, rows):
        update.last_wins(bank, index.flip(0), rows.flip(0))

    for repeated, right in zip(update.REPEATED, (True, False), strict=True):
        case = update.contest(16, 100, repeated, 8)
        form = case.forms["plain"]()
        form.once = functools.partial(first_wins, *form.once.args)
        assert case.right({"plain": case.errors(form)})["plain"] is right


def test_the_floor_is_the_slower_of_arithmetic_and_bytes(monkeypatch):
    monkeypatch.setattr(floor, "speeds", lambda: (100.0, 10.0))
    assert floor.floor_ms(1000, 10) == 10 and floor.floor_ms(10, 1000) == 100
    # All rows are drawn: 2 banks of 8 rows of 4 numbers; 2 sides, 1 anchor, 8 negatives and the positive.
    assert floor.critic_floor_ms(1, 8, 8, 4) == pytest.approx(max(2 * 9 * 16 / 100, 2 * 8 * 4 * 4 / 10))


def test_floor_keeps_the_best_speed_measured(monkeypatch):
    took = iter((2.0, 4.0, 8.0, 1.0))
    monkeypatch.setattr(floor, "best_ms", lambda call: next(took))
    monkeypatch.setattr(floor, "_seen", (0.0, 0.0))
    first, second = floor.speeds(), floor.speeds()
    assert second == (first[0], 4 * first[1]) == (floor.SIDE**3, floor.BYTES)


@needs_native
def test_quick_writes_only_into_the_given_folder(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(floor, "SIDE", 32)
    monkeypatch.setattr(floor, "BYTES", 1 << 12)
    monkeypatch.setattr(update, "quick_contests", lambda: [update.contest(4, 50, 0.0, 8)])
    monkeypatch.setattr(torch, "compile", lambda f, **_: f)
    monkeypatch.setattr(options, "RESULTS", tmp_path / "results")
    assert update.main(["--quick", "--repeats", "1"]) == 0
    assert "written" not in capsys.readouterr().out and not (tmp_path / "results").exists()
    assert update.main(["--quick", "--repeats", "1", "--out", str(tmp_path)]) == 0
    rows = [json.loads(line) for line in (tmp_path / "update.jsonl").read_text().splitlines()]
    assert [r["form"] for r in rows] == ["naive", "plain", "compile", "native", "reference"]
    assert all(r["right"] and r["commit"] and r["subject"] == "update" for r in rows)


def test_the_top_command_runs_every_subject_and_names_the_failed_ones(monkeypatch, capsys):
    argv = []

    def run(line, check):
        argv.append(line[3:])
        return subprocess.CompletedProcess(line, int(line[3] == "ot"))

    monkeypatch.setattr(subprocess, "run", run)
    assert command.main(["--quick", "--out", "there"]) == 1
    assert argv == [[subject, "--quick", "--out", "there"] for subject in command.QUICK]
    assert "FAILED: ot\n" in capsys.readouterr().out
    argv.clear()
    monkeypatch.setattr(command, "QUICK", ("bank",))
    assert command.main(["--quick"]) == 0 and argv == [["bank", "--quick"]]
    assert "every form of ours is right" in capsys.readouterr().out
