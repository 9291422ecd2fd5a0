"""The gates of the benches: a form that is wrong against float64, or not eager's loss, gets no ratio and a bad exit."""

import json

import pytest
import torch

from bench import baseline_providers, baselines, host, step
from bench.contest import measure

SMALL = ("resnet8", "wrn_10_1")  # as in the suite's other quick pairs


@pytest.mark.parametrize("name", baseline_providers.NAIVE)
def test_both_forms_of_a_baseline_agree_with_float64(name):
    rows = measure(baselines.contest(name, 3, *SMALL), 1)
    assert [(r["form"], r["right"]) for r in rows] == [("naive", True), ("ours", True)]
    assert rows[1]["times_naive"] > 0 and "times_naive" not in rows[0]
    assert all(e < 1e-3 for r in rows for e in r["error"].values())


def test_nst_oracle_image_by_image_equals_the_whole_batch():
    case = baseline_providers.Case("nst", 3, *SMALL)
    s, t = ([f.double() for f in feats] for feats in (case.s, case.t))
    value, grads = baseline_providers.differentiate(baseline_providers.nst, s, t, case.method)
    actual = case.answer()
    torch.testing.assert_close(actual[0], value, rtol=1e-12, atol=0)
    torch.testing.assert_close(actual[1], grads, rtol=1e-10, atol=1e-14)


def test_a_wrong_form_gets_no_ratio(monkeypatch, tmp_path, capsys):
    real = baselines.Ours.step
    monkeypatch.setattr(baselines.Ours, "step", lambda self: (real(self)[0] * 1.001, real(self)[1]))
    argv = [
        "--methods=pkt",
        "--batches",
        "4",
        "--repeats=1",
        f"--out={tmp_path}",
        "--student=resnet8",
        "--teacher=resnet8",
    ]
    assert baselines.main(argv) == 1
    assert "WRONG" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "baselines.jsonl").read_text().splitlines()]
    assert [r["right"] for r in rows] == [True, False] and not any("times_naive" in r for r in rows)
    assert rows[0]["commit"] and rows[0]["subject"] == "baselines"


def test_step_bench_equals_the_drivers_step(tmp_path, capsys):
    argv = ["--methods=crd", "--pair=wrn_10_1,resnet8", "--num-data=1000", "--repeats=2", f"--out={tmp_path}"]
    assert step.main(argv) == 0
    eager, other = [json.loads(line) for line in (tmp_path / "step.jsonl").read_text().splitlines()]
    assert eager["right"] and other["right"] and other["times_eager"] > 0
    for row in (eager, other):
        assert 0 < row["loss_share"] < 1 and row["images_per_s"] == pytest.approx(64e3 / row["ms"]["p50"], rel=1e-3)
        assert 0 < row["loss_ms"] < row["ms"]["p80"] * 2


def test_step_with_a_different_loss_gets_no_ratio(monkeypatch, tmp_path):
    real = step.Stepper.first
    monkeypatch.setattr(
        step.Stepper, "first", lambda self: real(self) * (1.01 if self.run.recipe["channels_last"] else 1)
    )
    argv = ["--methods=ce", "--pair=wrn_10_1,resnet8", "--num-data=1000", "--repeats=1", f"--out={tmp_path}"]
    assert step.main(argv) == 1
    rows = [json.loads(line) for line in (tmp_path / "step.jsonl").read_text().splitlines()]
    assert [r["right"] for r in rows] == [True, False] and "times_eager" not in rows[1]


def test_host_bench_reports_ours_and_naive(tmp_path):
    assert host.main(["--quick", f"--out={tmp_path}"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "host.jsonl").read_text().splitlines()]
    assert [(r["case"], r["form"]) for r in rows] == [
        (case, form) for case in ("CRDLoss", "WCoRDLoss", "ot_cost") for form in ("naive", "ours")
    ]
    for naive, ours in zip(rows[::2], rows[1::2], strict=True):
        assert naive["right"] and ours["right"] and ours["clock"] == "cpu" and ours["threads"] == 1
        assert ours["times_naive"] == pytest.approx(naive["ms"]["p50"] / ours["ms"]["p50"], abs=0.01)


def test_a_wrong_host_step_gets_no_ratio(monkeypatch):
    real = host.CRDLoss.forward
    monkeypatch.setattr(host.CRDLoss, "forward", lambda self, *batch: real(self, *batch) * calls.pop(0))
    calls = [1, 1, 1, 1.01, *[1] * 1000]  # two set-ups and the reference, then the step that the gate sees
    (contest,) = (c for c in host.contests([host.QUICK], 16, ()) if c.sizes["case"] == "CRDLoss")
    rows = [r for r in measure(contest, 1, "cpu") if r["form"] == "ours"]
    assert [r["right"] for r in rows] == [False] and "times_naive" not in rows[0]
