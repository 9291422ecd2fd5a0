"""README.md shows what bench/results holds: its tables are made from the committed rows, and from nothing else."""

from __future__ import annotations

import json
import shutil

import pytest

from bench import report, report_tables
from bench.results_file import RESULTS


def test_the_pages_show_the_committed_results():
    shown = set()
    for page in report.PAGES:
        text = page.read_text()
        shown |= {name for _, name, _ in report.BLOCK.findall(text)}
        assert report.rendered(text) == text, f"{page.name}: run `python -m bench report`"
    assert shown >= {"bank", "baselines", "sharded", "step"}


def test_a_new_row_replaces_the_old_one(tmp_path):
    shutil.copy(RESULTS / "bank.jsonl", tmp_path)
    row = next(r for r in report.read("bank") if r.get("form") == "gather" and r["batch"] == 64 and r.get("simd"))
    before = report_tables.bank_table(report.read("bank", tmp_path))
    with (tmp_path / "bank.jsonl").open("a") as f:
        f.write(json.dumps(row | {"simd": "avx512", "ms": {"p20": 1.0, "p50": 1.234, "p80": 2.0}}) + "\n")
    after = report_tables.bank_table(report.read("bank", tmp_path))
    assert "**1.23** (gather)" in after and "**1.23** (gather)" not in before


def test_a_block_without_results_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"README block 'bank': expected rows in .*bank\.jsonl, found none"):
        report.rendered("<!-- bench: bank -->\n<!-- end -->", tmp_path)
    with pytest.raises(ValueError, match=r"README block: expected one of \[.*'bank'.*\], got 'bnak'"):
        report.rendered("<!-- bench: bnak -->\n<!-- end -->", tmp_path)


def test_the_plots_are_drawn(tmp_path):
    shutil.copy(RESULTS / "bank.jsonl", tmp_path)
    (drawn,) = report.plots(tmp_path)
    assert drawn.name == "bank.svg" and drawn.read_text().count("<svg") == 1


def test_differences_that_may_be_zero_are_not_separated():
    setting = {"teacher": "t", "teacher_accuracy": 50.0, "student": "s", "images": 10, "epochs": 1}
    common = {"mean_norm": 0.5, "effective_rank": 9.0, "gap": 0.1, "date": "2026-01-01", "torch": "2", "threads": 1}
    accuracies = {"plain": (30.0, 31.0, 32.0), "better": (31.0, 32.1, 32.9), "unclear": (30.0, 32.5, 31.0)}
    rows = [
        {"variant": variant, "seed": seed, "accuracy": value, "grad_ce": 1.0, "device": "x", **setting, **common}
        for variant, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    shown = report_tables.accuracy_table(rows)
    better, unclear = (next(x for x in shown.splitlines() if x.startswith(f"| {v}")) for v in ("better", "unclear"))
    assert "+1.00 [+0.75, +1.25]" in better and "not separated" not in better
    assert "not separated" in unclear
