"""One reading of torch's switches for the accuracy of products, the older and the newer, and our own."""

from __future__ import annotations

import pytest
import torch

from wcord_fast.ops.precision import matmul_precision


@pytest.fixture(autouse=True)
def switches():
    """Restores torch's precision switches after the test."""
    before = torch.get_float32_matmul_precision()
    yield
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        torch.backends.cuda.matmul.fp32_precision = "none"
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("level", ["highest", "high", "medium"])
def test_the_older_switch(level):
    torch.set_float32_matmul_precision(level)
    assert matmul_precision() == level


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="this torch has no newer switch")
@pytest.mark.parametrize(("name", "level"), [("tf32", "high"), ("ieee", "highest")])
def test_the_newer_switch(name, level):
    torch.backends.cuda.matmul.fp32_precision = name
    assert matmul_precision() == level


def test_allow_tf32_lowers_ours_too_and_our_own_switch_wins(monkeypatch):
    torch.set_float32_matmul_precision("high")  # which allow_tf32 = True sets
    monkeypatch.setenv("WCORD_FAST_MATMUL_PRECISION", "highest")
    assert matmul_precision() == "highest"
    monkeypatch.setenv("WCORD_FAST_MATMUL_PRECISION", "higest")
    with pytest.raises(ValueError, match="did you mean 'highest'"):
        matmul_precision()
