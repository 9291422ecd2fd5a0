"""Functions and options without a kernel for CUDA: plain PyTorch computes them there, as float64 does on the CPU."""

from __future__ import annotations

import pytest
import torch

import wcord_fast
from wcord_fast import FeatureQueue, NegativeSampler, use_backend
from wcord_fast import functional as F

pytestmark = pytest.mark.gpu

B, N, D, K = 12, 90, 8, 20
LABELS = torch.arange(N) % 5


def critic(positive, negative):
    return positive - negative.logsumexp(-1)


def own_critic(x, y, index):
    name = f"{__name__}.critic"
    torch.manual_seed(0)
    loss = wcord_fast.WCoRDLoss(D, D, N, critic=name, feat_dim=D, num_negatives=K, labels=LABELS, seed=1, lambda_lckt=0)
    return loss.to(x.device, x.dtype)(x, y, index)


def queue(x, y, index):
    held = FeatureQueue(B + 3, D, labels=True).to(x.device, x.dtype).push_(y, index % 5).push_(x.detach(), index % 4)
    return x @ held.rows.T * held.labels


def sampler(device):
    return NegativeSampler(N, K, labels=LABELS, seed=3).to(device)


def bank_of(y):
    rows = torch.randn(N, D, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return torch.nn.functional.normalize(rows, dim=1).to(y.device, y.dtype)


CASES = {
    "known pairs": lambda x, y, index: F.ot_cost(x, y, pairs=(index % 5, index % 4)),
    "relaxed": lambda x, y, _: F.ot_cost(x, y, cost="euclidean", solver="sinkhorn", eps=0.5, reach=1.0),
    "given costs": lambda x, y, _: F.ot_cost_from_matrix((x[:, None] - y).square().sum(2), eps=0.5),
    "projection": lambda x, y, _: F.sinkhorn_project(x @ y.T),
    "InfoNCE": lambda x, y, index: F.bank_infonce(x, bank_of(y), index, negatives=sampler(x.device)),
    "sigmoid": lambda x, y, index: F.bank_sigmoid(x, bank_of(y), index, negatives=sampler(x.device)),
    "queue": queue,
    "own critic": own_critic,
}


def results(case, device, dtype):
    """The value and the gradient of x, in float64 on the CPU."""
    g = torch.Generator().manual_seed(1)
    x, y = (torch.nn.functional.normalize(torch.randn(B, D, generator=g), dim=1).to(device, dtype) for _ in range(2))
    index = torch.randperm(N, generator=g)[:B].to(device)
    value = CASES[case](x.requires_grad_(), y, index)
    value.square().sum().backward()
    return [t.detach().double().cpu() for t in (value, x.grad)]


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_equal_float64(case, device="cuda"):
    with use_backend("reference"):
        expected = results(case, "cpu", torch.float64)
    for mine, theirs in zip(results(case, device, torch.float32), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    wcord_fast.check()
