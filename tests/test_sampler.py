"""NegativeSampler: golden values, pools, replacement rules, weights, state."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from wcord_fast import NegativeSampler
from wcord_fast.ops.sampling.alias import alias_table

SEED = 0x0123456789ABCDEF
BACKENDS = ("reference", "native")
GOLDEN_PERMUTATION = {
    5: [1, 0, 4, 2, 3],
    1000: [830, 530, 578, 259, 798, 196],
    49500: [30542, 14743, 41229, 43178, 2263, 31088],
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pool", GOLDEN_PERMUTATION)
def test_golden_draws_without_replacement(pool, backend):
    expected = GOLDEN_PERMUTATION[pool]
    s = NegativeSampler(pool, len(expected), exclude="none", replacement=False, seed=SEED)
    s.step = 5
    assert s.draw(torch.tensor([0]), anchor_offset=3, backend=backend).tolist() == [expected]


@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_draws_with_replacement(backend):
    s = NegativeSampler(50000, 6, exclude="none", replacement=True, seed=SEED)
    s.step = 5
    rows = s.draw(torch.tensor([0]), anchor_offset=3, backend=backend)
    assert rows.tolist() == [[31902, 27048, 10680, 48858, 17601, 8783]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_pools_exclude_own_row_class_or_nothing(backend):
    labels = torch.randint(0, 6, (97,), generator=torch.Generator().manual_seed(0))
    index = torch.arange(97)
    for step in range(3):
        s = NegativeSampler(97, 60, labels=labels, seed=1)
        s.step = step
        rows = s.draw(index, backend=backend)
        assert (labels[rows] != labels[:, None]).all()
        s = NegativeSampler(97, 96, exclude="self", seed=1)
        s.step = step
        rows = s.draw(index, backend=backend)
        assert torch.equal(rows.sort(1).values, torch.stack([index[index != i] for i in index]))
    assert torch.equal(NegativeSampler(97, 97, exclude="none").draw(index).sort(1).values, index.expand(97, -1))


def test_without_replacement_rows_are_distinct():
    rows = NegativeSampler(1000, 700, labels=torch.arange(1000) % 10).draw(torch.arange(64))
    assert (rows.sort(1).values.diff(dim=1) > 0).all()


def test_defaults_of_exclude():
    assert NegativeSampler(10, 3).exclude == "self"
    assert NegativeSampler(10, 3, labels=[0, 1] * 5).exclude == "self"  # two classes
    assert NegativeSampler(12, 3, labels=[7, 9, 40] * 4).exclude == "class"
    assert NegativeSampler(12, 3, labels=[7, -1, 40] * 4).exclude == "self"  # two that are known
    assert NegativeSampler(10, 3, weights=np.ones(10)).exclude == "none"


def test_replacement_none_falls_back_per_anchor_and_warns():
    labels = torch.tensor([0] * 8 + [1] * 2 + [2] * 2)
    with pytest.warns(UserWarning, match="exceeds a pool of 4"):
        s = NegativeSampler(12, 9, labels=labels, seed=2)
    rows = s.draw(torch.tensor([0, 8]))
    assert set(rows[0].tolist()) <= {8, 9, 10, 11} and len(set(rows[1].tolist())) == 9
    with pytest.raises(ValueError, match="smallest pool, 4 rows"):
        NegativeSampler(12, 9, labels=labels, replacement=False)


def test_weighted_draws_follow_the_weights():
    weights = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 0.0, 10.0])
    s = NegativeSampler(7, 4000, weights=weights, seed=3)
    count = torch.bincount(s.draw(torch.arange(7)).flatten(), minlength=7).double()
    expected = weights.double() / weights.sum() * count.sum()
    assert count[0] == 0 and count[5] == 0
    chi2 = ((count - expected)[weights > 0] ** 2 / expected[weights > 0]).sum()
    assert chi2 < 22, chi2  # 4 degrees of freedom: p = 2e-4; the seed is fixed


def test_alias_table_reproduces_the_weights_exactly():
    weights = torch.rand(501, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    threshold, alias = alias_table(weights)
    keep = threshold.numpy().view(np.uint64).astype(np.float64) / 2.0**64
    fraction = keep.copy()
    np.add.at(fraction, alias.numpy(), 1 - keep)
    np.testing.assert_allclose(fraction / 501, (weights / weights.sum()).numpy(), rtol=1e-12)


def test_state_is_seed_and_step_and_resumes():
    torch.manual_seed(0)
    a = NegativeSampler(100, 10)
    torch.manual_seed(0)
    b = NegativeSampler(100, 10)
    index = torch.arange(5)
    assert a.seed == b.seed and torch.equal(a.draw(index), b.draw(index))
    before = a.draw(index)
    a.advance()
    assert int(a.step) == 1 and not torch.equal(a.draw(index), before)
    c = NegativeSampler(100, 10)
    c.load_state_dict(copy.deepcopy(a.state_dict()))
    assert torch.equal(c.draw(index), a.draw(index))
    assert list(a.state_dict()) == ["state", "made_with"]


def test_large_seeds_and_steps_use_all_bits():
    index = torch.arange(4)
    seen = set()
    for seed in (1, 1 + 2**32, 2**63, 2**64 - 1, -1):
        s = NegativeSampler(1000, 8, seed=seed)
        for step in (0, 2**32, 2**40):
            s.step = step
            seen.add(tuple(s.draw(index, backend="reference").flatten().tolist()))
    assert len(seen) == 12  # -1 and 2^64 - 1 are one seed


BAD = [
    ({"num_data": 0, "k": 1}, ValueError, "num_data"),
    ({"num_data": 10, "k": 0}, ValueError, "k: "),
    ({"num_data": 10, "k": 2.5}, TypeError, "k: "),
    ({"num_data": 10, "k": "most"}, ValueError, "'most'"),
    ({"num_data": 10, "k": 2, "labels": [0, 1, 2]}, ValueError, r"labels.*\[10\].*\[3\]"),
    ({"num_data": 3, "k": 2, "labels": [0.5, 1, 2]}, TypeError, "labels"),
    ({"num_data": 3, "k": 2, "labels": torch.zeros(3, dtype=torch.bfloat16)}, TypeError, "labels: expected 3 integers"),
    ({"num_data": 3, "k": 2, "labels": torch.zeros(3, device="meta")}, TypeError, "labels: expected 3 integers"),
    ({"num_data": 3, "k": 2, "labels": [[1], [1, 2], 3]}, TypeError, "labels: expected 3 integers, got list"),
    ({"num_data": 10, "k": 2, "exclude": "class"}, ValueError, "needs labels"),
    ({"num_data": 10, "k": 2, "exclude": "clas"}, ValueError, "did you mean 'class'"),
    ({"num_data": 10, "k": 10, "exclude": "self", "replacement": False}, ValueError, "smallest pool, 9 rows"),
    ({"num_data": 1, "k": 1}, ValueError, "no row to draw"),
    ({"num_data": 4, "k": 1, "labels": [1] * 4, "exclude": "class"}, ValueError, "no row to draw"),
    ({"num_data": 4, "k": 2, "weights": [1, 2, 3]}, ValueError, r"weights.*\[4\]"),
    ({"num_data": 3, "k": 2, "weights": [1, -2, 3]}, ValueError, "weights.*>= 0"),
    ({"num_data": 3, "k": 2, "weights": [0, 0, 0]}, ValueError, "positive sum"),
    ({"num_data": 3, "k": 2, "weights": [1, 2, 3], "exclude": "self"}, ValueError, "weights: only with"),
    ({"num_data": 3, "k": 2, "weights": [1, 2, 3], "replacement": False}, ValueError, "weights: only with"),
    ({"num_data": 9, "k": "all", "replacement": True}, ValueError, "k='all'"),
    ({"num_data": 9, "k": 2, "seed": 2**64}, ValueError, "64-bit"),
    ({"num_data": 9, "k": 2, "seed": 1.5}, TypeError, "seed"),
    ({"num_data": 2**31, "k": 2}, ValueError, "num_data: expected at most"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD)
def test_bad_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        NegativeSampler(**options)


def test_bad_draws_are_named():
    s = NegativeSampler(10, 3)
    for backend in BACKENDS:
        with pytest.raises(ValueError, match=r"index\[1\]: expected a row in \[0, 10\), got 10"):
            s.draw(torch.tensor([0, 10]), backend=backend)
        with pytest.raises(ValueError, match=r"got -1"):
            s.draw(torch.tensor([-1]), backend=backend)
    with pytest.raises(ValueError, match=r"index.*at least 1"):
        s.draw(torch.empty(0, dtype=torch.int64))
    with pytest.raises(TypeError, match="index"):
        s.draw(torch.tensor([0.0]))
    with pytest.raises(ValueError, match="anchor_offset"):
        s.draw(torch.tensor([0]), anchor_offset=-1)
