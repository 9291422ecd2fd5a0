"""README.md shows what bench/results holds: its tables are made from the committed rows, and from nothing else."""

from __future__ import annotations

import json
import shutil

import pytest

from bench import report, report_accuracy, report_lines, report_plots, report_tables
from bench.results_file import RESULTS


def test_the_pages_show_the_committed_results():
    shown = set()
    for page in report.PAGES:
        text = page.read_text()
        shown |= {name for _, name, _ in report.BLOCK.findall(text)}
        assert report.rendered(text) == text, f"{page.name}: run `python -m bench report`"
    assert shown >= {"bank", "baselines", "plan", "sharded", "step"}


def test_a_new_row_replaces_the_old_one(tmp_path):
    shutil.copy(RESULTS / "bank.jsonl", tmp_path)
    row = next(r for r in report.read("bank") if r.get("form") == "gather" and r["batch"] == 64 and r.get("simd"))
    before = report_tables.bank_table(report.read("bank", tmp_path))
    with (tmp_path / "bank.jsonl").open("a") as f:
        f.write(json.dumps(row | {"simd": "avx512", "ms": {"p20": 1.0, "p50": 1.234, "p80": 2.0}}) + "\n")
    after = report_tables.bank_table(report.read("bank", tmp_path))
    assert "**1.23-" in after and "**1.23-" not in before
    narrow_first = [row | {"simd": "portable", "threads": 2}, *report.read("bank", tmp_path)]
    assert report_tables.bank_table(narrow_first) == after  # of vector instructions only, with a note


def test_plan_table_equals_its_formula():
    shown = report.plan_table([{**report.read("plan")[-1], "ns_draw": 2.0, "ns_row": 50.0, "checksum_gb_s": 1.0}])
    cells = dict(line.strip("| ").split(" | ")[:2] for line in shown.splitlines()[2:14])
    assert cells["rows of a bank"] == "15,625,000" and cells["both banks"] == "8.0 GB"  # 10^9 / 64; x 2 x 128 x 2
    assert cells["sent in a step"] == "8.3 MB"  # 4,161,528 + 4,161,024
    assert cells["rows scored"] == "8.4 M" and cells["draws made"] == "268 M"  # 2 x 4096 x 65536 / 64; 4096 x 65536
    assert cells["**measured** on one CPU core: draws"] == "0.54 s"
    assert cells["**measured** on one CPU core: rows"] == "0.42 s"
    assert cells["checkpoint, all ranks at once, assumed 2 GB/s a rank"] == "12 s"


def test_a_block_without_results_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"block 'bank': expected rows in .*bank\.jsonl, found none"):
        report.rendered("<!-- bench: bank -->\n<!-- end -->", tmp_path)
    with pytest.raises(ValueError, match=r"block: expected one of \[.*'bank'.*\], got 'bnak'"):
        report.rendered("<!-- bench: bnak -->\n<!-- end -->", tmp_path)


def test_the_plots_are_drawn(tmp_path):
    shutil.copy(RESULTS / "bank.jsonl", tmp_path)
    (drawn,) = report.plots(tmp_path)
    assert drawn.name == "bank.svg" and drawn.read_text().count("<svg") == 1


def test_differences_that_may_be_zero_are_not_separated():
    setting = {"teacher": "t", "teacher_accuracy": 50.0, "student": "s", "images": 10, "epochs": 1}
    common = {"mean_norm": 0.5, "effective_rank": 9.0, "gap": 0.1, "date": "2026-01-01", "torch": "2", "threads": 1}
    accuracies = {"plain": (30.0, 31.0, 32.0), "better": (31.0, 32.1, 32.9), "unclear": (30.0, 32.5, 31.0)}
    accuracies |= {"worse": (29.0, 30.1, 30.9), "two": (29.0, 30.1), "LCKT mean": (30.0,), "LCKT sum": (30.0,)}
    rows = [
        {"variant": variant, "seed": seed, "accuracy": value, "device": "x", **setting, **common}
        for variant, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    rows[0] |= {"grad_ce": 0.9, "grad_lckt": 0.1}
    rows[1] |= {"grad_ce": 0.7, "grad_lckt": 0.3}
    rows[-2] |= {"grad_lckt": 0.001}
    rows[-1] |= {"grad_lckt": 0.064}
    old = {**rows[0], "accuracy": 99.0, "epochs": 2, "variant": "of another setting"}
    shown = {line.split(" | ")[0]: line for line in report_accuracy.accuracy_table([old, *rows]).splitlines()}
    assert "+1.00 [+0.75, +1.25]" in shown["| better"] and "not separated" not in shown["| better"]
    assert "not separated" in shown["| unclear"] and "| of another setting" not in shown
    assert "-0.95 (2 pairs), not separated" in shown["| two (2 of 3 seeds)"]
    assert "| 31.00 [28.52, 33.48] |" in shown["| plain"] and "| 29.55 |" in shown["| two (2 of 3 seeds)"]
    assert "| ce 80 %, lckt 20 % |" in shown["| plain"]  # of the seeds that have shares
    message = " ".join(report_accuracy.accuracy_line(rows).split())
    assert "3 paired seeds. Above: better. Below: worse. Not separated: unclear; two; LCKT mean; LCKT sum." in message
    message = report_accuracy.lckt_share(rows)
    assert "is 0.1 % of the gradient" in message and "6.4 %" in message


def accuracy_rows(accuracies):
    """Rows of `bench accuracy`: an accuracy per variant and seed."""
    setting = {"teacher": "t", "teacher_accuracy": 50.0, "student": "s", "images": 10, "epochs": 1, "gap": 0.1}
    return [
        {"variant": variant, "seed": seed, "accuracy": value, **setting, **COMMON}
        for variant, values in accuracies.items()
        for seed, value in enumerate(values)
    ]


def test_interval_equals_that_of_a_paired_t_test():
    """By hand: differences 1, 2, 3, 4 have mean 2.5, deviation 1.291, and t at 3 degrees of freedom is 3.182."""
    runs = report_accuracy.newest(accuracy_rows({"plain": (10, 11, 12, 13, 99), "a": (11, 13, 15, 17)}))
    paired = report_accuracy.difference(runs, "a", "plain")
    assert paired.mean == 2.5 and paired.seeds == 4 and paired.separated
    assert paired.interval == pytest.approx((2.5 - 3.18245 * 1.290994 / 2, 2.5 + 3.18245 * 1.290994 / 2), rel=1e-5)


def test_every_variant_is_compared_with_every_reference():
    tuned = report_accuracy.TUNED
    rows = accuracy_rows({"plain": (30, 31, 32), "KD": (35, 36.2, 37.1), "WCoRD": (33,), tuned: (35.1, 36, 37.3)})
    head, _, *lines = report_accuracy.differences_table(rows).splitlines()
    assert head == "| variant | minus plain | minus KD | minus WCoRD |"
    cells = {line.strip("| ").split(" | ")[0]: line.strip("| ").split(" | ")[1:] for line in lines[:4]}
    assert list(cells) == [f"{tuned} (preset tuned)", "KD", "WCoRD (1 of 3 seeds)", "plain"]  # the best first
    assert cells["KD"][1] == "-" and "not separated" not in cells["KD"][0]
    best = cells[f"{tuned} (preset tuned)"]
    assert best[1].endswith("], not separated") and best[2] == "+2.10 (1 pair), not separated"
    text = " ".join(report_accuracy.tuned_line(rows).split())
    assert "WCoRD +2.10 (1 pair), not separated" in text and "3 seeds" in text


def test_the_preset_beside_its_local_term_alone():
    tuned, only, prior = report_accuracy.TUNED, "LCKT only, weight 10", "LCKT prior 0.99, weight 10"
    without = {tuned: (36.1, 37, 38.2), only: (35, 36.2, 37.1), prior: (30, 40, 37)}
    with_kd = {tuned + "+KD": (41, 42), only + "+KD": (40, 41), prior + "+KD": (42, 43)}
    text = " ".join(report_accuracy.local_line(accuracy_rows(without | with_kd)).split())
    assert "`LCKT only` of the same weight: +1.00 [+0.57, +1.43]; both with KD: +1.00 (2 pairs), not separated." in text
    assert "], not separated; both with KD: -1.00 (2 pairs), not separated. Percentage points" in text


def test_a_table_without_the_plain_student_is_relative_to_kd():
    tuned = report_accuracy.TUNED
    rows = accuracy_rows({tuned: (36.1, 37, 38.2), "KD": (35, 36.2, 37.1)})
    head, _, ours, kd, *_ = report_accuracy.accuracy_table(rows).splitlines()
    assert head.startswith("| variant | test accuracy, % | minus KD, paired | gradient shares")
    assert ours.startswith(f"| {tuned} (preset tuned) | ") and "| +1.00 [+0.57, +1.43] |" in ours
    assert kd.startswith("| KD | ") and "| - |" in kd


def test_summary_has_a_column_for_each_setting():
    tuned = report_accuracy.TUNED
    small = accuracy_rows({"plain": (30, 31, 32), "KD": (35, 36.2, 37.1), tuned: (36.1, 37, 38.2), "GCKT nce": (33,)})
    whole = accuracy_rows({"KD": (50,), tuned: (54,), "WCoRD": (51.5,)})
    whole = [row | {"images": 100, "epochs": 40, "data": "digits"} for row in whole]
    head, _, *lines = report_accuracy.summary_table(small, whole).splitlines()
    assert head.endswith("| s of a t (50.0 %), 10 CIFAR-100 images, 1 epochs | s of a t (50.0 %), "
                         "100 digits, 40 epochs |")  # fmt: skip
    cells = {line.strip("| ").split(" | ")[0]: line.strip("| ").split(" | ")[1:] for line in lines[:8]}
    assert "from 3 seeds on" in lines[-1]
    methods = ["plain", "KD", "CRD", "WCoRD, `paper`", "WCoRD, `tuned`", "WCoRD, `tuned`, and KD"]
    assert list(cells) == [*methods, "`tuned` minus KD", "`tuned` minus `paper`"]
    assert cells["plain"] == ["31.00 [28.52, 33.48]", "-"] and cells["CRD"] == ["-", "-"]
    assert cells["`tuned` minus KD"] == ["+1.00 [+0.57, +1.43]", "+4.00 (1 pair), not separated"]
    assert cells["`tuned` minus `paper`"] == ["-", "+2.50 (1 pair), not separated"]


def test_accuracy_plot_has_intervals_from_three_seeds_on(tmp_path, monkeypatch):
    import matplotlib.axes

    drawn = []
    monkeypatch.setattr(matplotlib.axes.Axes, "errorbar", lambda *args, **_: drawn.append(args[1:3]))
    (tmp_path / "pairs").mkdir()
    rows = accuracy_rows({"plain": (30, 31, 32), "KD": (35, 36)})
    (tmp_path / "pairs" / "accuracy.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (plot,) = report.plots(tmp_path)
    assert plot.name == "accuracy.svg" and drawn == [(31, 0)]


COMMON = {"date": "2026-01-01T00:00:00Z", "torch": "2", "threads": 1, "device": "x", "clock": "cpu"}


def ot_row(provider, n, both, error=0.0, solver="sinkhorn", eps=0.05, **more):
    times = {"forward_p50": both / 2, "both_p50": both, "peak_mb": 10 * both, "value_error": error}
    return {"provider": provider, "solver": solver, "eps": eps, "n": n, "dim": 8, "iters": 50} | times | COMMON | more


def ot_rows():
    """Ours wins at 64, is beaten by POT at 256; GeomLoss is quick and wrong."""
    rows = [ot_row("ours, native", n, 2.0) for n in (64, 256)]
    rows += [ot_row("ours, native, no autograd", n, 0.5) for n in (64, 256)]
    rows += [ot_row("naive, unrolled", n, 40.0, float("nan")) for n in (64, 256)]
    rows += [ot_row("POT", 64, 3.0), ot_row("POT", 256, 1.5), ot_row("GeomLoss", 256, 0.1, 0.3)]
    return [*rows, ot_row("POT", 64, 0.1, **{"date": "2025-01-01T00:00:00Z"})][::-1]  # not in the last run


def test_form_that_does_not_solve_the_problem_is_not_compared():
    first, second = (line for line in report_tables.ot_table(ot_rows()).splitlines() if line.startswith("| sinkhorn"))
    assert "| fails | - | 1.5 / 3 (POT) | **1 / 2** | 20x |" in first and "0.75 / 1.5 (POT)" in second


def test_sizes_where_ours_is_slower_are_listed():
    text = " ".join(report_lines.ot_lost(ot_rows()).split())
    assert text.count("n = 256") == 2 and "n = 64" not in text and "GeomLoss" not in text
    assert "forward + gradient: POT 1.5 ms, ours 2, of which the op itself 0.5" in text
    won = [row for row in ot_rows() if row["provider"] != "POT"]
    assert report_lines.ot_lost(won) == "Ours is the fastest of all that was run, in every line.\n"


def test_autograd_overhead_is_a_ratio_within_one_run():
    rows = [ot_row("ours, native", 64, 2.0) | {"forward_p50": 0.8}, ot_row("ours, native, no autograd", 64, 3.0)]
    assert report_lines.autograd_table(rows).splitlines()[2:] == ["| 64 | 2.5 | 2.0 |"]


def contest_row(form, p50, **more):
    row = {"batch": 4, "k": 8, "num_data": 100, "dim": 16, "repeated": 1, "calls": 20, "form": form, "right": True}
    return row | {"ms": {"p50": p50, "p20": 1.0}, "percent_of_floor": 12.3, "simd": "avx2"} | COMMON | more


def test_failed_and_wrong_forms_are_marked():
    rows = [contest_row("naive", 9.0, right=False), contest_row("plain", 4.0), contest_row("dense", 3.0)]
    rows += [
        contest_row("compile", 0, failed="x"),
        contest_row("gather", 2.0, times_plain=2.0),
        contest_row("native", 1),
    ]
    assert "| 4, 8, 100 | 9 (wrong) | 4 | fails | 2 | 3 | - | 2.0x | 12 % |" in report_lines.critic_table(rows)
    assert "| 4, 1 | 450 (wrong) | 200 | fails | 50 |" in report_lines.update_table(rows)


def test_text_reports_the_last_collapse_run():
    row = {"student_model": "a", "teacher_model": "b", "images": 2000, "epoch": 3, "mean_norm": 0.456}
    row |= {"effective_rank": 7.77, "gap": 0.333, "collapsed": True}
    text = " ".join(report_lines.collapse([row | {"collapsed": False}, row]).split())
    assert "**It has collapsed**" in text and "norm 0.46, effective rank 7.8 and positives 0.33 above" in text


def test_the_bank_table_shows_the_range_of_all_runs():
    def run(date, simd, gather, plain):
        shared = {"device_kind": "cpu", "peak_mb": 1.0, "simd": simd, "date": date}
        ratios = {"times_plain": plain / gather, "percent_of_floor": 100 / gather}
        return [contest_row("gather", gather, **shared) | ratios, contest_row("plain", plain, **shared)]

    rows = [*run("2026-01-01", "avx512", 5.0, 20.0), *run("2026-01-02", "avx2", 8.0, 20.0)]
    rows += run("2026-01-03", "portable", 70.0, 20.0)
    line = report_tables.bank_table(rows).splitlines()[2]
    assert "| **5-8** (gather) | 20 | 2.5x-4.0x | - | 12 %-20 % |" in line
    assert "avx2 and avx512" in report_tables.bank_table(rows)


def test_the_plots_show_the_rows():
    from matplotlib.figure import Figure

    axes = Figure().subplots(3, 3)
    sizes = {"k": 8, "num_data": 100, "batch": 4}
    rows = [
        contest_row(form, p50 * size, sweep=name, peak_mb=3.0 * size, percent_of_floor=50 / size) | {name: size}
        for name in sizes
        for form, p50 in (("gather", 2.0), ("dense", 7.0))
        for size in (2, 1)
    ]
    report_plots.plot_bank(rows, axes)
    for column in axes.T:
        shown = [[list(line.get_ydata()) for line in axis.lines] for axis in column]
        assert shown == [[[2, 4], [7, 14]], [[3, 6], [3, 6]], [[50, 25], [50, 25]]]
    axes = Figure().subplots(2, 3)
    report_plots.plot_ot(ot_rows(), axes)
    shown = [{line.get_label(): list(line.get_ydata()) for line in axis.lines} for axis in axes[:, 0]]
    assert shown[0] == {"ours, native": [2, 2], "ours, native, no autograd": [0.5, 0.5], "POT": [3, 1.5]}
    assert shown[1]["POT"] == [30, 15]


def test_a_given_cost_and_projections_are_shown_beside_plain_pytorch():
    common = {"clock": "cpu", "date": "2026-01-01", "torch": "2", "threads": 1, "device": "a machine", "iters": 20}
    ours = common | {"provider": "ours, native", "p50": 2.0, "gradient_error": 3e-7}
    plain = common | {"provider": "plain PyTorch", "p50": 4.0, "gradient_error": None}
    case = {"problems": 64, "classes": 1000, "eps": 0.005}
    rows = [ours | case | {"p50": 9.0}, plain | case, ours | case]  # the last run counts
    rows += [
        row | case | {"kind": "own"} for row in (ours | {"p50": 1.0}, plain, plain | {"provider": "POT", "p50": 9})
    ]
    rows.append(plain | case | {"provider": "plain PyTorch, autograd", "p50": 5.0})
    shown = report_lines.given_cost_table(rows)
    assert "| 64 x 1,000, eps 0.005 | **2** | 4 (NaN) | 0.50 | 0.40 | 3e-07 |" in shown
    assert "| 64 x 1,000, eps 0.005, a cost each | **1** | 4 (NaN) | 0.25 | - | 3e-07 |" in shown
    rows = [row | {"problems": 4096, "n": 4, "gradient_error": 1e-7} for row in (ours, plain)]
    assert "| 4,096 of 4 x 4 | **2** | 4 | 0.50 | 1e-07 |" in report_lines.project_table(rows)
