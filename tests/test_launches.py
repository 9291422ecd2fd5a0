"""How many kernels a step launches on a GPU, counted on a played one: the numbers only ever fall."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from bench import launches
from bench.played_gpu import GPU, Played, played
from wcord_fast.ops import native_module

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
pytestmark = pytest.mark.skipif(native_module.load() is None, reason="no native module")

# (case, plan or size) -> most launches of ours, of PyTorch's operators, of the linear layers' products.
MOST = {
    ("CRDLoss", "dense"): (7, 7, 5),
    ("CRDLoss", "gather"): (4, 7, 5),
    ("WCoRDLoss", "dense"): (10, 12, 5),
    ("WCoRDLoss", "gather"): (7, 12, 5),
    ("ot_cost", 64): (1, 6, 0),
    ("ot_cost", 1024): (1, 6, 0),
}


@needs_triton
def test_launches_per_step_do_not_exceed_the_record():
    measured = {(row["case"], row.get("plan") or row["n"]): row for row in launches.rows()}
    assert measured.keys() == MOST.keys()
    for case, most in MOST.items():
        row = measured[case]
        assert row["ours"] <= most[0] and row["pytorch"] <= most[1] and row["products"] == most[2], row
        assert sum(row["kernels"].values()) == row["ours"] + row["pytorch"] + row["products"]


def test_emulated_cuda_tensor_counts_its_operators():
    with played() as counted:
        x = torch.ones(3, device="cuda", requires_grad=True)
        y = (x * 2 + 1).sum()
        y.backward()
        assert x.device == GPU and type(y) is Played and not y.is_cpu and x.view(3, 1).device == GPU
        assert y.cpu().device.type == "cpu" and float(y.detach()) == 9
    assert counted.pytorch["mul"] == 2 and counted.pytorch["add"] == 1 and "view" not in counted.pytorch
