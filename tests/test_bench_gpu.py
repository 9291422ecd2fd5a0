"""bench.gpu without a GPU: its schedule, its plug-in of pytest, and its measurements at tiny sizes on the CPU."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import gpu, gpu_floors, gpu_forms, gpu_items, gpu_pytest, gpu_schedule, gpu_times, gpu_tools
from bench.bank_providers import Case
from bench.gpu_measure import short_name
from bench.gpu_schedule import MISSING, STOPPED, Item, fails, seconds_of
from bench.results_file import read
from wcord_fast.ops import native_module

CPU = torch.device("cpu")
SHAPE, DIM = (4, 64, 1000), 16
needs_native = pytest.mark.skipif(native_module.load() is None, reason="no native module")


def python(name: str, code: str, seconds: float = 30) -> Item:
    return Item(name, [sys.executable, "-c", code], seconds)


def measured(subjects, sizes=()):
    return [gpu_times.measure(timed, CPU, {}) for timed in gpu_times.cases(subjects, SHAPE, sizes, DIM, CPU)]


@needs_native
def test_steps_of_every_form_are_right():
    rows = measured(["steps"])
    assert [(r["form"], r["bank"]) for r in rows] == [
        ("naive", "fp32"), ("plain", "fp32"), ("gather", "fp32"), ("gather", "bf16"), ("dense", "fp32"),
        ("dense", "bf16"), ("dense, all rows", "bf16"),
    ]  # fmt: skip
    for row in rows:
        assert not fails(row), row
        assert row["graph_us"]["p50"] > 0 and row["eager_us"]["p20"] <= row["eager_us"]["p80"]
        assert row.get("right", row["form"] == "dense, all rows"), row


@needs_native
def test_modules_of_every_form_are_right():
    rows = measured(["modules"])
    ours = [(name, plan) for name in ("CRDLoss", "WCoRDLoss") for plan in ("gather", "gather", "dense", "dense")]
    assert [(r["case"], r["form"]) for r in rows] == [("CRD", "naive"), ("CRD", "plain"), *ours]
    assert all(r["right"] and not fails(r) for r in rows), rows
    assert ["no_graph" in r for r in rows] == [True] + 9 * [False]


@needs_native
def test_kernels():
    rows = measured(["kernels"])
    forms = ["draw", "membership", "gather", "dense", "update", "gather", "dense", "update"]
    assert [r["form"] for r in rows] == forms and not any(map(fails, rows)), rows


@needs_native
def test_transport_of_every_provider():
    rows = measured(["transport"], sizes=[64])
    assert [r["solver"] for r in rows if r["form"] == "ours"] == ["sinkhorn", "ipot"]
    for row in rows:
        assert not fails(row), row
        assert row["error"]["value"] < (2e-2 if row["form"] == "GeomLoss" else 1e-4), row


@needs_native
def test_a_wrong_result_of_ours_is_a_failure(monkeypatch):
    monkeypatch.setitem(gpu_forms.LIMITS, "fp32", {"loss": 0.0, "grad": 0.0})
    monkeypatch.setattr(gpu_forms, "VALUE_LIMIT", 0.0)
    wrong = [(r["form"], r["bank"]) for r in measured(["steps"]) if fails(r)]
    assert wrong == [("gather", "fp32"), ("dense", "fp32")]
    assert {r["form"] for r in measured(["transport"], sizes=[64]) if fails(r)} == {"ours"}


@needs_native
def test_a_form_that_raises_keeps_what_was_measured_and_the_other_forms(monkeypatch):
    def broken(*_):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(gpu_times, "device_times", broken)
    (row,) = [
        gpu_times.measure(t, CPU, {}) for t in gpu_forms.steps(Case(*SHAPE, DIM), CPU) if t.row["form"] == "plain"
    ]
    assert row["failed"] == "RuntimeError: no such kernel" and row["eager_us"] and row["right"]


def test_floors_are_made_of_measured_ceilings(tmp_path):
    rows = gpu_schedule.Rows("ceilings", tmp_path, True)
    gpu_floors.measure(rows, CPU)
    ceiling = gpu_floors.ceilings(tmp_path, read("gpu", tmp_path)[0]["device"])
    assert set(ceiling) == {"memory", "l2", "bf16", "tf32", "fp32"} and all(ceiling.values())
    assert gpu_floors.ceilings(tmp_path, "another card") == {}
    assert gpu_floors.floor_us({"memory": 5e6, "bf16": 1.0}, {"memory": 1e12, "bf16": 1e12}) == 5.0
    assert gpu_floors.floor_us({"memory": 1.0, "l2": 1.0}, {"memory": 1e12}) is None


def test_work_of_the_plans():
    small = gpu_floors.gather_work(64, 16384, 50_000, 128, 2, l2=50_000_000)  # both banks fit in the cache
    assert small["l2"] == 2 * 64 * 16385 * 128 * 2 and small["memory"] <= 2 * 50_000 * 128 * 2
    large = gpu_floors.gather_work(1024, 65536, 1_281_167, 128, 2, l2=50_000_000)
    assert large["memory"] == pytest.approx(large["l2"] * (1 - 50e6 / (4 * 1_281_167 * 128)))
    assert gpu_floors.dense_work(64, 16384, 50_000, 128, 2)["bf16"] == 8 * 64 * 50_000 * 128


@pytest.mark.parametrize("dry_run", [False, True])
def test_shares_are_within_the_budget(tmp_path, dry_run):
    budget = gpu_items.BUDGET * (gpu_items.DRY_FACTOR if dry_run else 1)
    schedules = {
        "first": gpu_items.first_contact(tmp_path, dry_run),
        "full": gpu_items.full(tmp_path, dry_run),
        "accuracy": gpu_items.accuracy(tmp_path, "data", tmp_path, None, dry_run),
    }
    for name, schedule in schedules.items():
        assert budget * 0.9 <= sum(map(seconds_of, schedule)) <= budget, name
        names = [item.name for group in schedule for item in group]
        assert len(set(names)) == len(names)


def test_every_item_has_a_line_even_if_it_failed(tmp_path, capsys):
    schedule = [
        # First, for the last item gets all the time that is left.
        [python("hangs", "import time; print('begun', flush=True); time.sleep(600)", seconds=3)],
        [python("fine", "print('a'); print('b')")],
        [python("wrong", "import sys; print('no'); sys.exit(1)"), python("beside", "print('c')")],
        [Item("absent", ["/no/such/program"], 1)],
        [python("dies", "import os; os.kill(os.getpid(), 11)")],
    ]
    rows = {r["item"]: r for r in gpu_schedule.run(schedule, tmp_path, 94)}
    assert {name: (r["outcome"], r["exit"]) for name, r in rows.items()} == {
        "fine": ("done", 0), "wrong": ("failed", 1), "beside": ("done", 0), "absent": ("tool is missing", MISSING),
        "dies": ("killed by signal 11", -11), "hangs": ("over its time", STOPPED),
    }  # fmt: skip
    assert rows["fine"]["last_line"] == "b" and rows["hangs"]["last_line"] == "begun"
    assert [r["item"] for r in read("gpu", tmp_path)] == list(rows)
    assert "[hangs] begun" in (tmp_path / "gpu.log").read_text() and "[beside] c" in capsys.readouterr().out


def test_unused_time_goes_to_the_next_item(tmp_path):
    schedule = [[python("first", "pass", 20)], [python("second", "pass", 20)]]
    rows = {r["item"]: r for r in gpu_schedule.run(schedule, tmp_path, 40)}
    assert rows["second"]["limit_s"] > 25
    hangs = [[python("first", "import time; time.sleep(600)", 2)], schedule[1]]
    rows = {r["item"]: r for r in gpu_schedule.run(hangs, tmp_path, 22)}
    assert rows["first"]["outcome"] == "over its time" and rows["second"]["limit_s"] > 10
    with pytest.raises(ValueError, match="shares of at most 5 s, got 40 s"):
        gpu_schedule.run(schedule, tmp_path, 5)


def test_item_without_time_left_is_reported(tmp_path):
    rows = gpu_schedule.run(
        [[python("slow", "import time; time.sleep(9)", 1)], [python("late", "pass", 0.25)]], tmp_path, 1.25
    )
    assert [r["outcome"] for r in rows] == ["over its time", "left out"] and all(r["exit"] for r in rows)


OUTCOMES = """
import os, sys, time, pytest
pytestmark = pytest.mark.gpu

def test_good(): pass
def test_wrong(): assert 1 == 2
def test_dead(): raise RuntimeError("CUDA error: an illegal memory access was encountered")
def test_hangs(): time.sleep(600)
@pytest.mark.skip(reason="not here")
def test_skipped(): pass
def test_last(): print("the last one ran")
"""


@pytest.mark.slow
def test_outcomes_of_tests_are_written_one_by_one_and_survive_a_dead_device(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_ADDOPTS", "--option-of-the-caller")
    (tmp_path / "test_outcomes.py").write_text(OUTCOMES)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    code = (
        "import sys; from bench import gpu_item, gpu_pytest; import torch; torch.cuda.is_available = lambda: True;"
        "sys.exit(gpu_pytest.main(sys.argv[1:]))"
    )
    arguments = ["--item", "tests", "--out", str(tmp_path), "--", str(tmp_path), "-n", "0", "--gpu-seconds", "2"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, cwd=gpu_items.ROOT
    )
    rows = {r["test"].partition("::")[2]: r for r in read("gpu", tmp_path)}
    assert {name: r["outcome"] for name, r in rows.items()} == {
        "test_good": "passed", "test_wrong": "failed", "test_dead": "failed", "test_hangs": "hung",
        "test_skipped": "skipped", "test_last": "passed",
    }, done.stdout + done.stderr  # fmt: skip
    assert done.returncode == 1 and done.stdout.rstrip().endswith("3 tests failed")
    assert "assert 1 == 2" in rows["test_wrong"]["failed"] and "illegal memory" in rows["test_dead"]["failed"]
    assert done.stdout.count("test_wrong FAILED in call") == 1 and "not here" in rows["test_skipped"]["why"]


def test_expressions_that_choose_no_test_are_a_failure(tmp_path):
    command = [sys.executable, "-m", "bench.gpu_pytest", "--out", str(tmp_path), "--dry-run", "--", "tests/test_gpu.py"]
    done = subprocess.run(
        [*command, "-k", "no_such_test"], capture_output=True, text=True, check=False, cwd=gpu_items.ROOT
    )
    assert done.returncode == gpu_pytest.NO_TEST and "no test was chosen" in done.stdout


def alternatives(expression):
    """The parts of an expression of pytest's -k that `or` joins, outside of parentheses."""
    depth, parts = 0, [""]
    for word in re.findall(r"[()]|[^\s()]+", expression):
        depth += {"(": 1, ")": -1}.get(word, 0)
        if word == "or" and not depth:
            parts.append("")
        else:
            parts[-1] += f" {word}"
    return parts


def test_every_part_of_an_expression_chooses_a_test():
    """A test that has got another name drops out of an expression in silence while the rest chooses some."""
    chosen = [
        *(row[2] for row in (*gpu_items.NATIVE_TESTS, *gpu_items.DENSE_TESTS, gpu_items.PLAIN_TESTS)),
        *gpu_items.TRITON_TESTS,
        *([*gpu_items.SANITIZED_FILES, "-k", row[2]] for row in gpu_items.SANITIZED),
    ]
    files = sorted({word for words in chosen for word in words if word.endswith(".py")})
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-m", "gpu", "-n", "0", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=gpu_items.ROOT)
    tests = [line for line in done.stdout.splitlines() if "::" in line]
    for words in chosen:
        own = [t for t in tests if t.startswith(tuple(w for w in words if w.endswith(".py")))]
        assert own, words
        for part in alternatives(words[-1]) if "-k" in words else []:
            assert any(_chooses(part, test) for test in own), (part, words)
            for name in set(re.findall(r"[\w.-]+", part)) - {"and", "or", "not"}:
                assert any(name in test for test in own), (name, words)


def _chooses(part, test):
    def true(match):
        return match[0] if match[0] in ("and", "or", "not") else str(match[0] in test)

    return eval(re.sub(r"[\w.-]+", true, part.strip()))


def test_times_go_on_in_another_process_after_an_error_that_ends_the_device(tmp_path, monkeypatch):
    names, commands = ["a", "b", "c"], []
    illegal = "AcceleratorError: CUDA error: an illegal memory access was encountered"
    monkeypatch.setattr(gpu_times, "all_cases", lambda _: iter(names))
    monkeypatch.setattr(gpu_times, "slow", lambda name: name)
    monkeypatch.setattr(
        gpu_times, "measure", lambda name, *_: {"form": name} | ({"failed": illegal} if name == "b" else {})
    )
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: commands.append(command) or subprocess.CompletedProcess(command, 0)
    )
    monkeypatch.setattr(gpu_times, "device_name", lambda: "a GPU")
    arguments = ["transport", "--sizes", "64", "--out", str(tmp_path), "--dry-run"]
    assert gpu_times.main(arguments) == 1
    assert [r["form"] for r in read("gpu", tmp_path)] == ["a", "b"]
    assert commands[0][1:] == ["-m", "bench.gpu_times", *arguments, "--skip", "2"]
    assert gpu_times.main(commands[0][3:]) == 0
    assert [r["form"] for r in read("gpu", tmp_path)] == ["a", "b", "c"]


def test_counters_of_ncu():
    text = (
        "==PROF== Connected\n"
        '"ID","Kernel Name","Block Size","Grid Size","Metric Name","Metric Unit","Metric Value"\n'
        '"0","draw_kernel","(256, 1, 1)","(64, 1, 1)","gpu__time_duration.sum","ns","1,234"\n'
        '"0","draw_kernel","(256, 1, 1)","(64, 1, 1)","launch__registers_per_thread","register/thread","40"\n'
        '"1","sinkhorn_kernel","(512, 1, 1)","(1, 1, 1)","gpu__time_duration.sum","ns","9"\n'
    )
    first, second = gpu_tools.counters(text)
    assert first["kernel"] == "draw_kernel" and first["gpu__time_duration.sum [ns]"] == 1234
    assert first["launch__registers_per_thread [register/thread]"] == 40 and second["kernel"] == "sinkhorn_kernel"


def test_the_kernels_that_ncu_is_asked_for_exist():
    sources = [*gpu_items.ROOT.glob("csrc/cuda/*"), *gpu_items.ROOT.glob("wcord_fast/ops/*/triton*.py")]
    text = "".join(path.read_text() for path in sources)
    defined = set(re.findall(r"(?:def|__global__ void[^;{]*?) (\w+_kernel)\(", text))
    assert len(gpu_tools.PROFILED) == 6 and set(gpu_tools.PROFILED) <= defined


def test_missing_tool_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_tools, "find", lambda program: None)
    rows = gpu_schedule.Rows("tools", tmp_path, False)
    assert gpu_tools.sanitize(rows, "memcheck", [], False) == gpu_tools.profile(rows, [], tmp_path, False) == MISSING
    assert [r["failed"] for r in read("gpu", tmp_path)] == ["compute-sanitizer is missing", "ncu is missing"]


@pytest.mark.parametrize(("full", "short"), [
    ("void wcf::(anonymous namespace)::gather_rows_kernel<float, 128>(wcf::BankScore, wcf::NceCharge)",
     "gather_rows_kernel"),
    ("nce_fwd_kernel", "nce_fwd_kernel"),
    ("Memcpy DtoD (Device -> Device)", "Memcpy DtoD"),
    ("void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>>(int, T2)",
     "vectorized_elementwise_kernel"),
])  # fmt: skip
def test_names_of_kernels(full, short):
    assert short_name(full) == short


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_reports_it(capsys):
    assert gpu.main([]) == 2 and "needs a CUDA device" in capsys.readouterr().err
    assert gpu.main(["--dry-run", "--only", "nothing"]) == 2 and "--only: expected" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu.parse(["--accuracy"])


KINDS = {"first": [], "full": ["--full"], "accuracy": ["--accuracy"]}


def played(out: Path) -> dict[str, list[str]]:
    """For each of KINDS the items to play: in a dry run several are one command, which need not run twice."""
    seen, result = set(), {}
    for kind, options in KINDS.items():
        items = [i for g in gpu.schedule_of(gpu.parse(["--dry-run", "--out", str(out), *options])) for i in g]
        commands = {item.name: " ".join(item.command).replace(f"--item {item.name} ", "") for item in items}
        result[kind] = []
        for name, command in commands.items():
            if command not in seen:
                result[kind].append(name)
                seen.add(command)
    return result


def test_every_command_of_a_dry_run_is_played(tmp_path):
    items = played(tmp_path)
    assert {"environment", "build", "tests bank", "ncu", "times 64,16384,50000"} <= set(items["first"])
    assert items["full"] == ["tests all"] and items["accuracy"] == ["teacher", "students"]


@pytest.mark.slow
@needs_native
@pytest.mark.parametrize("kind", KINDS)
def test_dry_run_executes_every_item(tmp_path, kind):
    options = ["--dry-run", "--out", str(tmp_path), *KINDS[kind], "--only", *played(tmp_path)[kind]]
    command = [sys.executable, "-m", "bench.gpu", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=gpu_items.ROOT)
    rows = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert done.returncode == 0 and all(r["dry_run"] for r in rows), done.stdout[-3000:]
    ended = {r["item"]: r["outcome"] for r in rows if "limit_s" in r}
    assert set(played(tmp_path)[kind]) <= set(ended)
    assert ended == {i.name: "done" for group in gpu.schedule_of(gpu.parse(options)) for i in group}
    assert kind != "first" or "stand-in" in (tmp_path / "gpu.log").read_text()
    assert len(list(Path(tmp_path).glob("gpu*"))) <= 4  # few files, so that they are easily brought home
