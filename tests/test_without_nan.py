"""A loss's knowledge of its log Z on a (played) GPU: a set log Z costs no launch, and a write is checked again."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from bench.launches import converting
from bench.played_gpu import played
from wcord_fast import CRDLoss
from wcord_fast.ops import native_module, without_nan

pytestmark = pytest.mark.skipif(native_module.load() is None, reason="no native module")


def steps(loss, launches, number=1) -> int:
    """Kernels of log Z in so many training steps."""
    before = launches.own["log_z_kernel"]
    for _ in range(number):
        f_s, f_t = torch.zeros(4, 5, device="cuda"), torch.zeros(4, 6, device="cuda")
        loss(f_s, f_t, torch.arange(4, device="cuda"))
    return launches.own["log_z_kernel"] - before


@pytest.fixture
def on_gpu():
    loss = CRDLoss(5, 6, 40, nce_k=10, plan="gather", seed=1)
    with played() as launches, converting():
        loss._apply(lambda t: t.to("cuda"))
        loss.contrast.log_z.zero_()
        yield loss, launches


def test_a_log_z_that_is_set_costs_no_launch_after_the_first_step(on_gpu):
    loss, launches = on_gpu
    assert steps(loss, launches) == 1 and steps(loss, launches, 3) == 0
    loss.eval()
    assert steps(loss, launches) == 0


def test_every_write_and_copy_is_checked_again(on_gpu):
    loss, launches = on_gpu
    steps(loss, launches)
    loss.reset_z()
    loss.eval()  # keeps it unset
    assert steps(loss, launches, 2) == 2 and math.isnan(float(loss.contrast.log_z[0]))
    loss.train()
    loss.contrast.log_z.zero_()
    assert steps(loss, launches, 2) == 1
    loss.load_state_dict(loss.state_dict())
    assert steps(loss, launches, 2) == 1


def test_copy_does_not_inherit_the_checked_state():
    loss = CRDLoss(5, 6, 40, nce_k=10, seed=1)
    loss.contrast._is_set._tested = loss.contrast.log_z, 0
    assert copy.deepcopy(loss).contrast._is_set._tested is None


def test_late_answer_of_the_device_is_used(on_gpu, monkeypatch):
    loss, launches = on_gpu
    arrived = []
    monkeypatch.setattr(without_nan, "result_later", lambda flag: lambda: bool(flag) if arrived else None)
    assert steps(loss, launches, 3) == 3
    arrived.append(True)
    monkeypatch.setattr(without_nan, "result_later", None)  # no second test
    assert steps(loss, launches, 2) == 0


def test_pending_answer_of_the_device_is_ignored(on_gpu, monkeypatch):
    loss, launches = on_gpu
    monkeypatch.setattr(without_nan, "result_later", lambda flag: lambda: None)
    assert steps(loss, launches, 3) == 3
    monkeypatch.setattr(without_nan, "can_test", lambda tensor: False)  # in a graph
    assert steps(loss, launches, 2) == 2
