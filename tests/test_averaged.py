"""Averages of buffers leave the seed of a sampler and its tables as they are."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from wcord_fast import CRDLoss, NegativeSampler, WCoRDLoss

N, B = 40, 4
SEED = 0x7123456789ABCDEF
LOSSES = {
    "crd": lambda: CRDLoss(6, 5, N, nce_k=7, feat_dim=4, labels=torch.arange(N) % 5, seed=SEED),
    "wcord": lambda: WCoRDLoss(6, 5, N, num_negatives=7, feat_dim=4, labels=torch.arange(N) % 5, seed=SEED),
}


def batch(step):
    g = torch.Generator().manual_seed(step)
    return torch.randn(B, 6, generator=g), torch.randn(B, 5, generator=g), torch.randint(N, (B,), generator=g)


@pytest.mark.parametrize(
    "options", [{}, {"multi_avg_fn": get_ema_multi_avg_fn(0.9)}, {"avg_fn": lambda a, b, n: a * 0.5 + b * 0.5}]
)
@pytest.mark.parametrize("use_buffers", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_many_updates_leave_the_seed(name, use_buffers, options):
    loss = LOSSES[name]()
    averaged = AveragedModel(loss, use_buffers=use_buffers, **options)
    for step in range(5):
        loss(*batch(step)).backward()
        averaged.update_parameters(loss)
        if step == 2:
            saved = averaged.state_dict()
            assert int(saved["module.contrast.sampler.state"][0]) == SEED
    ours, theirs = averaged.module.contrast.sampler, loss.contrast.sampler
    assert ours.seed == theirs.seed == SEED and int(ours.state[0]) == SEED
    assert 0 <= int(ours.step) <= 5 and (use_buffers or int(ours.step) == 5)
    ours.step = 5
    idx = torch.arange(B)
    for backend in ("native", "reference"):
        assert torch.equal(ours.draw(idx, backend=backend), theirs.draw(idx, backend=backend))
    averaged.eval()
    assert averaged(*batch(9)).isfinite()
    fresh = LOSSES[name]()
    fresh.load_state_dict(averaged.module.state_dict())
    assert fresh.contrast.sampler.seed == SEED


def test_tables_are_not_averaged():
    weighted = NegativeSampler(9, 4, weights=torch.arange(9) + 0.5, seed=SEED)
    averaged = AveragedModel(weighted, use_buffers=True)
    for _ in range(3):
        averaged.update_parameters(weighted)
        weighted.advance()
    averaged.module.step = int(weighted.step)
    assert torch.equal(averaged.module.draw(torch.arange(9)), weighted.draw(torch.arange(9)))
    assert [name for name, _ in weighted.named_buffers()] == ["state", "made_with"]


@pytest.mark.parametrize("options", [{"critic": "dual"}, {"lckt_pairs": "prior", "lckt_pairs_by": "class"}])
def test_classes_of_a_batch_are_not_averaged(options):
    loss = WCoRDLoss(6, 5, N, num_negatives=7, feat_dim=4, labels=torch.arange(N) % 5, seed=SEED, **options).eval()
    averaged = AveragedModel(loss, use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in range(20):
        averaged.update_parameters(loss)
    for name, table in loss.tables.items():
        assert torch.equal(averaged.module.tables[name], table)
    assert {"group", "class"} & set(loss.tables)
    assert torch.equal(averaged(*batch(9)), averaged(*batch(9)))


def test_a_seed_that_was_written_or_loaded_is_taken():
    sampler, other = NegativeSampler(N, 4, seed=SEED), NegativeSampler(N, 4, seed=5)
    other.step = 3
    for assign in (False, True):
        made = copy.deepcopy(sampler)
        made.load_state_dict(copy.deepcopy(other.state_dict()), assign=assign)
        assert made.seed == 5 and made.state.tolist() == [5, 3]
        made.advance()
        assert made.state.tolist() == [5, 4] and other.state.tolist() == [5, 3]
    sampler.state.copy_(torch.tensor([1, 7]))  # as a distributed checkpoint does, before load_state_dict
    assert sampler.seed == 1 and sampler.state.tolist() == [1, 7]


def test_an_average_of_a_seed_is_undone():
    sampler = NegativeSampler(N, 4, seed=SEED)
    sampler.state.copy_(torch.tensor([float(SEED), 7.0]))  # through fp32
    assert int(sampler.state[0]) != SEED and sampler.seed == SEED and sampler.state.tolist() == [SEED, 7]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies_go_their_own_way(duplicate):
    sampler = NegativeSampler(N, 4, labels=torch.arange(N) % 3, seed=SEED)
    sampler.step = 4
    made = duplicate(sampler)
    made.advance()
    assert sampler.state.tolist() == [SEED, 4] and made.state.tolist() == [SEED, 5]
    sampler.advance()
    assert torch.equal(made.draw(torch.arange(B)), sampler.draw(torch.arange(B)))


def test_to_empty_loses_nothing():
    sampler = NegativeSampler(N, 4, seed=SEED)
    sampler.step = 4
    assert sampler.to_empty(device="cpu").state.tolist() == [SEED, 4]
    meta = sampler.to("meta").to_empty(device="cpu")
    meta.reset_parameters()
    assert meta.state.tolist() == [SEED, 0]


def test_a_state_that_is_handed_in_is_read_as_it_is():
    sampler, idx = NegativeSampler(N, 4, seed=SEED), torch.arange(B)
    given = torch.tensor([5, 2])
    swapped = torch.func.functional_call(Draws(sampler), {"sampler.state": given}, (idx,))
    other = NegativeSampler(N, 4, seed=5)
    other.step = 2
    assert torch.equal(swapped, other.draw(idx)) and given.tolist() == [5, 2] and sampler.state.tolist() == [SEED, 0]


class Draws(torch.nn.Module):
    def __init__(self, sampler):
        super().__init__()
        self.sampler = sampler

    def forward(self, index):
        return self.sampler.draw(index)


def test_within_inference_mode():
    with torch.inference_mode():
        sampler = NegativeSampler(N, 4, seed=SEED)
        sampler.advance()
        assert sampler.state.tolist() == [SEED, 1]
