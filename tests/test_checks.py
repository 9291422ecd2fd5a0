"""The checks of options: values that count as a number, and messages that name the argument."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from wcord_fast import MemoryBank, NegativeSampler
from wcord_fast import functional as F
from wcord_fast.ops import checks


@pytest.mark.parametrize("value", [3, np.int32(3), np.array(3), torch.tensor(3)])
def test_values_accepted_as_int(value):
    actual = checks.integer("k", value, least=1)
    assert actual == 3 and type(actual) is int


@pytest.mark.parametrize(
    "value",
    [2.7, 3.0, True, "3", None, np.float64(3), np.bool_(True), np.array(2.7), np.array([3, 4]), torch.tensor(2.7),
     torch.tensor(True), torch.tensor([3, 4]), np.array([3]), torch.tensor(3, device="meta")],
    ids=repr,
)  # fmt: skip
def test_values_that_are_no_int_are_never_truncated(value):
    with pytest.raises(TypeError, match="k: expected an int, got"):
        checks.integer("k", value, least=1)


def test_an_option_that_is_no_whole_number_is_refused_by_its_name():
    x = torch.randn(4, 3)
    with pytest.raises(TypeError, match="iters: expected an int"):
        F.ot_solve(x, x, iters=torch.tensor(2.9))
    with pytest.raises(TypeError, match="k: expected an int"):
        NegativeSampler(10, np.array(2.7))


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int64])
def test_numpy_scalars_are_accepted(kind):
    actual = checks.positive("eps", kind(1))
    assert actual == 1.0 and type(actual) is float
    x = torch.randn(4, 3)
    assert torch.equal(F.ot_cost(x, x, eps=kind(1)), F.ot_cost(x, x, eps=1.0))
    assert MemoryBank(4, 3, momentum=kind(1)).momentum == 1.0


def test_an_int_that_no_float_holds_is_refused_by_its_name():
    with pytest.raises(ValueError, match=r"eps: expected a number below 1.8e308, got an int of 1329 bits"):
        checks.positive("eps", 10**400)


@pytest.mark.parametrize("value", [np.array(["cosine", "b"]), torch.ones(2)], ids=["array", "tensor"])
def test_an_array_is_no_choice(value):
    with pytest.raises(ValueError, match=re.escape("cost: expected one of 'cosine', 'sqeuclidean', got")):
        checks.choice("cost", value, ("cosine", "sqeuclidean"))
