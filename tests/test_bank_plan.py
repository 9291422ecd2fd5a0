"""The plan and backend of `auto`: the cost model, explicit choices, and that `explain` names them."""

from __future__ import annotations

import statistics

import pytest
import torch

import wcord_fast
from bench.results_file import read
from wcord_fast import NegativeSampler
from wcord_fast import functional as F
from wcord_fast.ops import dispatch, native_module
from wcord_fast.ops.bank import op, plan
from wcord_fast.ops.bank.plan import Cost, Problem, choose

needs_native = pytest.mark.skipif(native_module.load() is None, reason="no native module")


@pytest.fixture
def ran(monkeypatch):
    """The ops that ran, as a list of (backend, plan)."""
    seen: list[tuple[str, str]] = []

    def recorder(key, module):
        class Recorder:
            def __getattr__(self, name):
                def run(*args):
                    seen.append(key[:2])
                    return getattr(module, name)(*args)

                return run

        return Recorder()

    monkeypatch.setattr(op, "_MODULES", {key: recorder(key, module) for key, module in op._MODULES.items()})
    return seen


@pytest.mark.parametrize("backend", ["auto", "native", "reference"])
@pytest.mark.parametrize("chosen", ["auto", "gather", "dense"])
@pytest.mark.parametrize(("num_data", "k", "batch", "dim"), [(4000, 5, 2, 16), (200, 180, 40, 16), (300, "all", 3, 64)])
def test_explain_names_the_backend_and_plan_that_run(ran, num_data, k, batch, dim, chosen, backend):
    if backend == "native" and native_module.load() is None:
        pytest.skip("no native module")
    g = torch.Generator().manual_seed(0)
    anchor, bank = torch.randn(batch, dim, generator=g), torch.randn(num_data, dim, generator=g)
    index = torch.arange(batch)
    s = NegativeSampler(num_data, k, seed=1)
    F.bank_nce(anchor, bank, index, negatives=s, log_z=3.0, plan=chosen, backend=backend)
    for function in (F.bank_mean_score, F.bank_log_z, F.bank_infonce, F.bank_sigmoid):
        function(anchor, bank, index, negatives=s, plan=chosen, backend=backend)
    sizes = {"num_data": num_data, "k": k, "batch": batch, "dim": dim}
    for name, done in zip(dispatch.BANK_SCORES, ran, strict=True):
        explained = wcord_fast.explain(name, **sizes, plan=chosen, backend=backend)
        assert (explained.backend, explained.plan) == done
        assert f"plan {explained.plan}: " in explained.reason


def test_every_row_of_the_support_table_has_an_implementation():
    for row in dispatch.SUPPORT:
        if row.op in dispatch.BANK_SCORES:
            assert hasattr(op._MODULES[row.backend, row.plan, row.device], row.op)


@needs_native
def test_the_cheaper_plan_is_taken(monkeypatch):
    simd = native_module.module().simd()
    monkeypatch.setitem(plan.COSTS, ("native", "gather", simd), Cost(10.0, 0.0))
    monkeypatch.setitem(plan.COSTS, ("native", "dense", simd), Cost(2.0, 0.0, 1.0))
    # Gather: 10 B K.  Dense: 2 B N + N D.
    assert choose("bank_nce", "auto", Problem(100, 1000, 199, 1), "cpu").plan == "gather"
    assert choose("bank_nce", "auto", Problem(100, 1000, 203, 1), "cpu").plan == "dense"
    assert choose("bank_nce", "auto", Problem(1, 1000, 203, 10), "cpu").plan == "gather"
    assert choose("bank_nce", "auto", Problem(100, 1000, -1, 1), "cpu").plan == "dense"
    assert "N/K = 4.93, 1.01 times cheaper by the measured costs" in str(
        choose("bank_nce", "auto", Problem(100, 1000, 203, 1), "cpu")
    )


@needs_native
def test_costs_are_those_of_the_instruction_set_in_use(simd, monkeypatch):
    for other in ("portable", "avx2", "avx512"):
        monkeypatch.setitem(plan.COSTS, ("native", "gather", other), Cost(1.0 if other == simd else 9.0, 0.0))
        monkeypatch.setitem(plan.COSTS, ("native", "dense", other), Cost(1.0, 0.0))
    assert choose("bank_nce", "auto", Problem(64, 1000, 250, 128), "cpu").plan == "gather"


def test_costs_choose_the_plan_that_is_first_in_the_committed_steps():
    ratios: dict[tuple, list[float]] = {}  # instruction set, sizes -> times of gather over those of dense
    runs: dict[tuple, dict[str, float]] = {}
    for row in read("bank"):
        if row.get("form") in plan.PLANS and row.get("simd") in ("avx2", "avx512") and "sweep" not in row:
            case = row["simd"], Problem(row["batch"], row["num_data"], row["k"], row["dim"])
            times = runs.setdefault((case, row["date"]), {})
            times[row["form"]] = row["ms"]["p50"]
            if len(times) == 2:
                ratios.setdefault(case, []).append(times["gather"] / times["dense"])
    assert len(ratios) >= 6
    for (simd, problem), measured in ratios.items():
        gather, dense = (problem.nanoseconds(name, plan.COSTS["native", name, simd]) for name in plan.PLANS)
        assert (gather < dense) == (statistics.median(measured) < 1), (simd, problem)


def test_a_backend_without_costs_is_judged_by_bytes(monkeypatch):
    monkeypatch.setattr(plan, "COSTS", {})
    for k, expected in ((43, "gather"), (44, "dense")):
        choice = choose("bank_nce", "auto", Problem(64, 1000, k, 128), "cpu", "reference")
        assert choice.plan == expected and "by the assumed costs" in choice.reason


def test_a_compiled_backend_beats_a_cheaper_plan_of_the_reference(monkeypatch):
    rows = (
        dispatch.Row("bank_nce", "gather", "cpu", "native", "here"),
        dispatch.Row("bank_nce", "dense", "any", "reference", "slow"),
    )
    monkeypatch.setattr(dispatch, "SUPPORT", rows)
    monkeypatch.setattr(dispatch, "cannot_run", lambda backend, device: None)
    choice = choose("bank_nce", "auto", Problem(64, 1000, 999, 128), "cpu")
    assert (choice.plan, choice.backend) == ("gather", "native") and "the only plan of backend native" in choice.reason
    assert choose("bank_nce", "dense", Problem(64, 1000, 999, 128), "cpu").backend == "reference"
    with pytest.raises(NotImplementedError, match="backend='triton'"):
        choose("bank_nce", "auto", Problem(64, 1000, 999, 128), "cpu", "triton")
