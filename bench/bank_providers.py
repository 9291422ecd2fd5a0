"""One CRD step on two banks, several ways: both directions, loss, gradients of both anchors, update of both banks.

Every provider has the same interface and its own copy of the banks. `rows` [B, K] are the negatives; the baselines get
them for nothing, ours draws them itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wcord_fast import NegativeSampler
from wcord_fast import functional as F
from wcord_fast.functional.bank import nce_pair

TAU, MOMENTUM, EPS = 0.07, 0.5, 1e-7
CLASSES = 100


@dataclass
class Case:
    """The sizes and data of one measurement; direction 0 scores student anchors on the teacher's bank."""

    batch: int
    k: int
    num_data: int
    dim: int = 128

    def __post_init__(self):
        g = torch.Generator().manual_seed(0)
        unit = torch.nn.functional.normalize
        self.anchors = unit(torch.randn(2, self.batch, self.dim, generator=g), dim=2)
        self.banks = [unit(torch.randn(self.num_data, self.dim, generator=g)) for _ in range(2)]
        self.index = torch.randperm(self.num_data, generator=g)[: self.batch]
        labels = torch.arange(self.num_data) % CLASSES
        self.sampler = NegativeSampler(self.num_data, self.k, labels=labels, seed=1)
        # log Z as the first batch sets it, for unit rows in D dimensions: N * mean of exp(s / tau).
        self.log_z = torch.log(torch.tensor(float(self.num_data))) + 0.5 / TAU**2 / self.dim
        self.log_z = self.log_z.expand(2).clone()

    def answers(self, anchors: int) -> tuple[Tensor, Tensor]:
        """Loss [2, n] and gradients [2, n, D] of the first n anchors in float64, from the banks as they are now."""
        index, rows = self.index[:anchors], self.sampler.draw(self.index)[:anchors]
        losses, grads = [], []
        for x, bank, log_z in zip(self.anchors[:, :anchors].double(), self.banks, self.log_z.double(), strict=True):
            x = x.requires_grad_()
            one = []
            for b in range(anchors):
                score = bank[torch.cat((index[b : b + 1], rows[b]))].double() @ x[b]
                p = torch.exp(score / TAU - log_z)
                c = self.k / self.num_data
                one.append(-torch.log(p[0] / (p[0] + c + EPS)) - torch.log(c / (p[1:] + c + EPS)).sum())
            losses.append(torch.stack(one).detach())
            grads.append(torch.autograd.grad(torch.stack(one).sum(), x)[0])
        return torch.stack(losses), torch.stack(grads)


class Naive:
    """RepDistiller: index_select of [B, K+1, D], bmm, exp, its loss, autograd, in-place update."""

    def __init__(self, case: Case):
        self.case, self.banks = case, [bank.clone() for bank in case.banks]
        self.z = case.log_z.exp().tolist()
        self.index = torch.cat((case.index[:, None], case.sampler.draw(case.index)), 1)

    def step(self) -> tuple[Tensor, Tensor]:
        """Losses [2, B], gradients [2, B, D]."""
        case, (batch, n) = self.case, self.index.shape
        anchors = [x.clone().requires_grad_() for x in case.anchors]
        losses = []
        for x, bank, z in zip(anchors, self.banks, self.z, strict=True):
            weight = torch.index_select(bank, 0, self.index.view(-1)).detach().view(batch, n, case.dim)
            out = torch.exp(torch.div(torch.bmm(weight, x.view(batch, case.dim, 1)), TAU)).div(z)
            c = (n - 1) / case.num_data
            positive, negative = out[:, 0], out.narrow(1, 1, n - 1)
            log_d1 = torch.log(torch.div(positive, positive.add(c + EPS)))
            log_d0 = torch.div(negative.clone().fill_(c), negative.add(c + EPS)).log_()
            losses.append(-(log_d1 + log_d0.sum(1))[:, 0])
        torch.stack(losses).sum().backward()
        with torch.no_grad():
            for bank, x in zip(self.banks, reversed(anchors), strict=True):
                row = torch.index_select(bank, 0, case.index).mul_(MOMENTUM).add_(torch.mul(x, 1 - MOMENTUM))
                row.div_(row.pow(2).sum(1, keepdim=True).pow(0.5))
                bank.index_copy_(0, case.index, row)
        return torch.stack(losses).detach(), torch.stack([x.grad for x in anchors])


class Plain:
    """The best plain PyTorch found: all scores by one matrix product, take_along_dim, softplus, autograd."""

    def __init__(self, case: Case):
        self.case, self.banks = case, [bank.clone() for bank in case.banks]
        self.rows = case.sampler.draw(case.index)
        self.offset = (torch.log(torch.tensor(case.k / case.num_data + EPS)) + case.log_z).tolist()

    def step(self) -> tuple[Tensor, Tensor]:
        """Losses [2, B], gradients [2, B, D]."""
        case = self.case
        anchors = [x.clone().requires_grad_() for x in case.anchors]
        constant = case.k * torch.log1p(torch.tensor(EPS * case.num_data / case.k, dtype=torch.float64))
        losses = []
        for x, bank, offset in zip(anchors, self.banks, self.offset, strict=True):
            score = x @ bank.T
            own = torch.take_along_dim(score, case.index[:, None], 1)[:, 0] / TAU - offset
            others = torch.take_along_dim(score, self.rows, 1) / TAU - offset
            softplus = torch.nn.functional.softplus
            losses.append(softplus(-own) + softplus(others).sum(1) + constant.float())
        torch.stack(losses).sum().backward()
        with torch.no_grad():
            for bank, x in zip(self.banks, reversed(anchors), strict=True):
                row = MOMENTUM * bank[case.index] + (1 - MOMENTUM) * x
                bank[case.index] = row / row.norm(dim=1, keepdim=True)
        return torch.stack(losses).detach(), torch.stack([x.grad for x in anchors])


class Ours:
    """This library by one plan, through the door that the loss modules use; draws included."""

    def __init__(self, case: Case, plan: str, backend: str = "native", *, copy: bool = True):
        self.case, self.plan, self.backend = case, plan, backend
        self.banks = [bank.clone() for bank in case.banks] if copy else case.banks

    def step(self) -> tuple[Tensor, Tensor]:
        """Losses [2, B], gradients [2, B, D]."""
        case = self.case
        x = case.anchors.clone().requires_grad_()
        spec = case.sampler.spec()
        loss = nce_pair(x, self.banks, case.index, case.log_z, spec, TAU, self.plan, self.backend)
        loss.sum().backward()
        for bank, row in zip(self.banks, case.anchors.flip(0), strict=True):
            F.bank_update_(bank, case.index, row, MOMENTUM)
        return loss.detach(), x.grad
