"""One CRD step on two banks, several ways: both directions, loss, gradients of both anchors, update of both banks.

All providers have one interface and a copy of the banks each. `rows` [B, K] are the negatives; the baselines get
them for nothing, ours draws them itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wcord_fast import NegativeSampler
from wcord_fast import functional as F
from wcord_fast.ops.bank import directions

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


def index_copy_update(bank: Tensor, index: Tensor, rows: Tensor) -> None:
    """RepDistiller's update: an index that occurs twice has no defined result."""
    row = torch.index_select(bank, 0, index).mul_(MOMENTUM).add_(torch.mul(rows, 1 - MOMENTUM))
    row.div_(row.pow(2).sum(1, keepdim=True).pow(0.5))
    bank.index_copy_(0, index, row)


def plain_update(bank: Tensor, index: Tensor, rows: Tensor) -> None:
    """The shortest form in plain PyTorch, for an index without repetitions."""
    row = MOMENTUM * bank[index] + (1 - MOMENTUM) * rows
    bank[index] = row / row.norm(dim=1, keepdim=True)


def plain_loss(x: Tensor, bank: Tensor, own: Tensor, rows: Tensor, offset: float, constant: float) -> Tensor:
    """Losses [B] of anchors x [B, D]: all scores [B, N] by one matrix product, take_along_dim, softplus."""
    score = x @ bank.T
    positive = torch.take_along_dim(score, own[:, None], 1)[:, 0] / TAU - offset
    negatives = torch.take_along_dim(score, rows, 1) / TAU - offset
    softplus = torch.nn.functional.softplus
    return softplus(-positive) + softplus(negatives).sum(1) + constant


class Form:
    """One way to take a step; each has its own banks."""

    def __init__(self, case: Case, *, copy: bool = True):
        self.case = case
        self.banks = [bank.clone() for bank in case.banks] if copy else case.banks

    def critic(self) -> tuple[Tensor, Tensor]:
        """Losses [2, B] and gradients [2, B, D], banks as they are."""
        anchors = [x.clone().requires_grad_() for x in self.case.anchors]
        losses = torch.stack([self.loss(side, x) for side, x in enumerate(anchors)])
        losses.sum().backward()
        return losses.detach(), torch.stack([x.grad for x in anchors])

    def loss(self, side: int, x: Tensor) -> Tensor:
        """Losses [B] of one direction."""
        raise NotImplementedError

    def update(self, bank: Tensor, index: Tensor, rows: Tensor) -> None:
        """Write the anchors' rows into a bank."""
        plain_update(bank, index, rows)

    def step(self) -> tuple[Tensor, Tensor]:
        """The result of `critic`; then each bank is updated with the anchors of the other direction."""
        result = self.critic()
        for bank, rows in zip(self.banks, self.case.anchors.flip(0), strict=True):
            self.update(bank, self.case.index, rows)
        return result


class Naive(Form):
    """RepDistiller: index_select of [B, K+1, D], bmm, exp, its loss, autograd, in-place update."""

    def __init__(self, case: Case, *, copy: bool = True):
        super().__init__(case, copy=copy)
        self.z = case.log_z.exp().tolist()
        self.index = torch.cat((case.index[:, None], case.sampler.draw(case.index)), 1)

    def loss(self, side: int, x: Tensor) -> Tensor:
        (batch, n), bank = self.index.shape, self.banks[side]
        weight = torch.index_select(bank, 0, self.index.view(-1)).detach().view(batch, n, x.shape[1])
        out = torch.exp(torch.div(torch.bmm(weight, x.view(batch, x.shape[1], 1)), TAU)).div(self.z[side])
        c = (n - 1) / len(bank)
        positive, negative = out[:, 0], out.narrow(1, 1, n - 1)
        log_d1 = torch.log(torch.div(positive, positive.add(c + EPS)))
        log_d0 = torch.div(negative.clone().fill_(c), negative.add(c + EPS)).log_()
        return -(log_d1 + log_d0.sum(1))[:, 0]

    def update(self, bank: Tensor, index: Tensor, rows: Tensor) -> None:
        index_copy_update(bank, index, rows)


class Plain(Form):
    """The best plain PyTorch found, with autograd."""

    def __init__(self, case: Case, *, copy: bool = True):
        super().__init__(case, copy=copy)
        self.rows = case.sampler.draw(case.index)
        self.offset = (torch.log(torch.tensor(case.k / case.num_data + EPS)) + case.log_z).tolist()
        self.constant = case.k * math.log1p(EPS * case.num_data / case.k)
        self.formula = plain_loss

    def loss(self, side: int, x: Tensor) -> Tensor:
        return self.formula(x, self.banks[side], self.case.index, self.rows, self.offset[side], self.constant)


class Compiled(Plain):
    """The loss of the plain form, forward and backward, under torch.compile."""

    def __init__(self, case: Case, *, copy: bool = True):
        super().__init__(case, copy=copy)
        self.offset = [torch.tensor(offset) for offset in self.offset]  # one program for both directions
        self.formula = torch.compile(plain_loss, dynamic=False)


class Ours(Form):
    """This library by one plan, through the door that the loss modules use; draws included."""

    def __init__(self, case: Case, plan: str, backend: str = "native", *, copy: bool = True):
        super().__init__(case, copy=copy)
        self.plan, self.backend = plan, backend

    def critic(self) -> tuple[Tensor, Tensor]:
        """Losses [2, B] and gradients [2, B, D]."""
        case = self.case
        x = case.anchors.clone().requires_grad_()
        spec = case.sampler.spec()
        loss = directions.nce(x, self.banks, case.index, case.log_z, spec, TAU, self.plan, self.backend)
        loss.sum().backward()
        return loss.detach(), x.grad

    def update(self, bank: Tensor, index: Tensor, rows: Tensor) -> None:
        F.bank_update_(bank, index, rows, MOMENTUM)


class CriticAlone:
    """A form whose step does not change the banks."""

    def __init__(self, form: Form):
        self.step = form.critic
