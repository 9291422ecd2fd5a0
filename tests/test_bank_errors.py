"""Bad input to the bank functions: an error naming the argument, its value and what was expected; nothing changed."""

from __future__ import annotations

import math

import pytest
import torch

from wcord_fast import MemoryBank, NegativeSampler
from wcord_fast import functional as F
from wcord_fast.ops.bank import op

N, K, D, B = 30, 6, 5, 4


def good() -> dict:
    g = torch.Generator().manual_seed(0)
    return {
        "anchor": torch.randn(B, D, generator=g),
        "bank": torch.randn(N, D, generator=g),
        "index": torch.tensor([3, 0, 29, 3]),
        "negatives": NegativeSampler(N, K, seed=0),
        "log_z": torch.tensor(5.0),
    }


def with_nan(t: torch.Tensor) -> torch.Tensor:
    t[1, 2] = math.nan
    return t


BAD = [
    ({"anchor": [[1.0]]}, TypeError, r"anchor: expected a torch.Tensor, got list"),
    ({"anchor": torch.ones(B, D, dtype=torch.int64)}, TypeError, r"anchor: expected dtype float16.*got int64"),
    ({"anchor": torch.ones(B, D).to_sparse()}, TypeError, r"anchor: expected a dense tensor"),
    ({"anchor": torch.ones(B)}, ValueError, r"anchor: expected shape \[B, D\], got \[4\]"),
    ({"anchor": torch.ones(0, D)}, ValueError, r"anchor.*at least 1, got \[0, 5\]"),
    ({"anchor": torch.ones(B, D + 1)}, ValueError, r"anchor: expected width 5, that of the bank, got \[4, 6\]"),
    ({"anchor": torch.ones(B, D, device="meta")}, ValueError, r"bank is on cpu but anchor is on meta"),
    ({"anchor": with_nan(torch.ones(B, D))}, ValueError, r"anchor: row 1 holds nan"),
    ({"bank": "bank"}, TypeError, r"bank: expected a tensor \[N, D\] or a MemoryBank, got str"),
    ({"bank": torch.ones(N)}, ValueError, r"bank: expected shape \[N, D\]"),
    ({"bank": torch.ones(N + 1, D)}, ValueError, r"negatives: the sampler is for 30 rows but the bank has 31"),
    ({"index": torch.tensor([0, 1, 2])}, ValueError, r"index: expected shape \[4\], got \[3\]"),
    ({"index": torch.ones(B)}, TypeError, r"index: expected dtype int64, int32, got float32"),
    ({"index": torch.tensor([0, 1, N, 2])}, ValueError, r"index\[2\]: expected a row in \[0, 30\), got 30"),
    ({"index": torch.tensor([0, -1, 1, 2])}, ValueError, r"index\[1\].*got -1"),
    ({"negatives": 7}, TypeError, r"negatives: expected a NegativeSampler or an integer tensor \[B, K\], got int"),
    ({"negatives": torch.zeros(B, 2)}, TypeError, r"negatives: expected dtype int64"),
    ({"negatives": torch.zeros(B + 1, 2, dtype=torch.int64)}, ValueError, r"negatives: expected shape \[4, K\]"),
    ({"negatives": torch.zeros(B, 0, dtype=torch.int64)}, ValueError, r"negatives.*at least 1"),
    ({"negatives": torch.full((B, 2), N)}, ValueError, r"negatives\[0, 0\]: expected a row in \[0, 30\), got 30"),
    ({"log_z": torch.ones(2)}, ValueError, r"log_z: expected shape \[\], got \[2\]"),
    ({"temperature": 0.0}, ValueError, r"temperature: expected a positive finite number, got 0.0"),
    ({"temperature": "hot"}, TypeError, r"temperature: expected a number, got 'hot'"),
    ({"temperature": math.inf}, ValueError, r"temperature"),
    ({"anchor_offset": -1}, ValueError, r"anchor_offset: expected an int of at least 0, got -1"),
    ({"plan": "tree"}, ValueError, r"plan: expected one of 'auto', 'gather', 'dense', got 'tree'"),
    ({"backend": "cuda"}, ValueError, r"backend: expected one of"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments_of_the_score_functions_are_named(change, error, message):
    args = good() | change
    anchor, bank, index = (args.pop(k) for k in ("anchor", "bank", "index"))
    with pytest.raises(error, match=message):
        F.bank_nce(anchor, bank, index, **args)


UPDATE = [
    ({"bank": torch.ones(N, 2 * D)[:, ::2]}, ValueError, r"bank: expected a contiguous tensor"),
    ({"bank": torch.ones(N, D, requires_grad=True)}, ValueError, r"bank: expected a tensor without gradient"),
    ({"rows": torch.ones(B, D + 1)}, ValueError, r"rows: expected shape \[4, 5\], got \[4, 6\]"),
    ({"rows": torch.ones(B, D, dtype=torch.int32)}, TypeError, r"rows: expected dtype"),
    ({"rows": with_nan(torch.ones(B, D))}, ValueError, r"rows: row 1 holds nan"),
    ({"index": torch.tensor([0, 1, 2, N])}, ValueError, r"index\[3\]: expected a row in \[0, 30\), got 30"),
    ({"index": torch.empty(0, dtype=torch.int64), "rows": torch.empty(0, D)}, ValueError, r"index.*at least 1"),
    ({"momentum": 1.1}, ValueError, r"momentum: expected a number in \[0, 1\], got 1.1"),
    ({"rows": torch.ones(B, D, device="meta")}, ValueError, r"rows is on meta but bank is on cpu"),
]


@pytest.mark.parametrize(("change", "error", "message"), UPDATE)
def test_bad_updates_write_nothing(change, error, message):
    args = {k: v for k, v in good().items() if k in ("bank", "index")} | {"rows": torch.ones(B, D)} | change
    bank = args["bank"]
    before = bank.detach().clone()
    with pytest.raises(error, match=message):
        F.bank_update_(**args)
    assert torch.equal(bank, before)


def test_bad_memory_bank_options_are_refused():
    for options, message in (
        ({"num_data": 0, "dim": 4}, "num_data"),
        ({"num_data": 4, "dim": 0}, "dim"),
        ({"num_data": 4, "dim": 4, "momentum": -0.1}, "momentum"),
        ({"num_data": 4, "dim": 4, "seed": 2**64}, "seed"),
    ):
        with pytest.raises(ValueError, match=message):
            MemoryBank(**options)
    with pytest.raises(TypeError, match=r"dtype: expected one of.*torch.int8"):
        MemoryBank(4, 4, dtype=torch.int8)


def test_a_memory_bank_stands_for_its_rows():
    args = good()
    bank = MemoryBank(N, D, seed=1)
    anchor, index = args["anchor"], args["index"]
    options = {"negatives": args["negatives"], "log_z": 5.0}
    assert torch.equal(F.bank_nce(anchor, bank, index, **options), F.bank_nce(anchor, bank.rows, index, **options))
    expected = bank.rows.clone()
    F.bank_update_(expected, index, anchor, 0.5)
    assert F.bank_update_(bank, index, anchor, 0.5) is bank and torch.equal(bank.rows, expected)


@pytest.mark.parametrize("plan", ["gather", "dense"])
@pytest.mark.parametrize("flagged", [False, True])
def test_flagged_bad_values_do_not_enter_the_estimate_of_log_z(monkeypatch, plan, flagged):
    """As the CUDA kernels do; here a device is played, on which bad values are flagged and not raised."""
    args = good()
    del args["log_z"]
    wanted = F.bank_log_z(**args, plan=plan, backend="reference")

    class Elsewhere(torch.Tensor):
        device = torch.device("cuda", 0)

    def checked(anchors, num_data, index, spec):
        ok = torch.ones(anchors.shape[:2], dtype=torch.bool)
        ok[0, 1] = not flagged
        return index.long(), spec, ok.as_subclass(Elsewhere)

    monkeypatch.setattr(op, "checked", checked)
    actual = F.bank_log_z(**args, plan=plan, backend="reference")
    assert actual.isnan() if flagged else torch.equal(actual, wanted)
