"""The baselines' losses as RepDistiller's criteria compute them and as this library does: a step's value and gradients.

All providers have one interface. The naive forms follow the public code operation by operation. The float64 answer is
the naive form too; for nst it goes image by image, which gives an equal mean in less memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from wcord_fast import distill, models
from wcord_fast.distill import Outputs

EPS = 1e-7


def sp(s: list[Tensor], t: list[Tensor], embed: torch.nn.Module) -> Tensor:
    grams = [F.normalize(f.flatten(1) @ f.flatten(1).t()) for f in (s[-2], t[-2])]
    difference = grams[1] - grams[0]
    return (difference * difference).view(-1, 1).sum(0)[0] / len(s[-2]) ** 2


def pkt(s: list[Tensor], t: list[Tensor], embed: torch.nn.Module) -> Tensor:
    similarity = []
    for f in (s[-1], t[-1]):
        out = f / (torch.sqrt(torch.sum(f**2, dim=1, keepdim=True)) + EPS)
        out[out != out] = 0
        cosine = (torch.mm(out, out.transpose(0, 1)) + 1.0) / 2.0
        similarity.append(cosine / torch.sum(cosine, dim=1, keepdim=True))
    model, target = similarity
    return torch.mean(target * torch.log((target + EPS) / (model + EPS)))


def cc(s: list[Tensor], t: list[Tensor], embed: torch.nn.Module) -> Tensor:
    delta = torch.abs(embed.embed_s(s[-1]) - embed.embed_t(t[-1]))
    return torch.mean((delta[:-1] * delta[1:]).sum(1))


def rkd(s: list[Tensor], t: list[Tensor], embed: torch.nn.Module) -> Tensor:
    def distances(e: Tensor) -> Tensor:
        square = e.pow(2).sum(dim=1)
        d = (square.unsqueeze(1) + square.unsqueeze(0) - 2 * (e @ e.t())).clamp(min=1e-12).sqrt().clone()
        d[range(len(e)), range(len(e))] = 0
        return d / d[d > 0].mean()

    def angles(e: Tensor) -> Tensor:
        n = F.normalize(e.unsqueeze(0) - e.unsqueeze(1), p=2, dim=2)
        return torch.bmm(n, n.transpose(1, 2)).view(-1)

    with torch.no_grad():
        expected = distances(t[-1]), angles(t[-1])
    return 25 * F.smooth_l1_loss(distances(s[-1]), expected[0]) + 50 * F.smooth_l1_loss(angles(s[-1]), expected[1])


def nst(s: list[Tensor], t: list[Tensor], embed: torch.nn.Module) -> Tensor:
    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a.unsqueeze(1) * b.unsqueeze(2)).sum(-1).pow(2).mean()

    total = s[-1].new_zeros(())
    for a, b in zip(s[1:-1], t[1:-1], strict=True):
        a, b = (F.normalize(f.view(f.shape[0], f.shape[1], -1), dim=2) for f in (a, b))
        total = total + kernel(b, b).detach() + kernel(a, a) - 2 * kernel(a, b)
    return total


NAIVE = {"nst": nst, "rkd": rkd, "sp": sp, "pkt": pkt, "cc": cc}


@dataclass
class Case:
    """Features of `batch` images as the two networks give them: non-negative maps, the student's near the teacher's."""

    name: str
    batch: int
    student: str
    teacher: str

    def __post_init__(self):
        torch.manual_seed(0)
        nets = (models.create(net).eval() for net in (self.student, self.teacher))
        s, t = ([f.shape[1:] for f in distill.probe(net, torch.zeros(1, 3, 32, 32)).feats] for net in nets)
        pair = distill.Pair(tuple(s), tuple(t), classes=100, teacher_classes=100, num_data=1, labels=None, seed=0)
        self.method = distill.build(self.name, pair, distill.options_for(self.name))
        self.t = [torch.randn(self.batch, *shape).relu() for shape in t]
        noise = [torch.randn(self.batch, *shape).relu() for shape in s]
        self.s = [0.5 * (n + f) if n.shape == f.shape else n for n, f in zip(noise, self.t, strict=True)]

    def answer(self) -> tuple[Tensor, list[Tensor]]:
        """Value and gradients of the naive form in float64."""
        self.method.double()
        try:
            s, t = ([f.double() for f in feats] for feats in (self.s, self.t))
            if self.name != "nst":
                return differentiate(NAIVE[self.name], s, t, self.method)
            parts = [differentiate(nst, [f[b : b + 1] for f in s], [f[b : b + 1] for f in t], self.method)
                     for b in range(self.batch)]  # fmt: skip
            grads = [torch.cat(g) / self.batch for g in zip(*(grad for _, grad in parts), strict=True)]
            return sum(value for value, _ in parts) / self.batch, grads
        finally:
            self.method.float()


class Naive:
    """The public code's way, in float32."""

    def __init__(self, case: Case):
        self.case = case

    def step(self) -> tuple[Tensor, list[Tensor]]:
        """The unweighted value, and its gradients in the student's features and the method's parameters."""
        return differentiate(NAIVE[self.case.name], self.case.s, self.case.t, self.case.method)


class Ours:
    """This library's, as a training step calls it."""

    def __init__(self, case: Case):
        self.case = case

    def step(self) -> tuple[Tensor, list[Tensor]]:
        """The same."""

        def value(s: list[Tensor], t: list[Tensor], method: torch.nn.Module) -> Tensor:
            logits = torch.zeros(len(s[-1]), 1)
            return method.own_loss(Outputs(s, logits), Outputs(t, logits), None).value / method.weight

        return differentiate(value, self.case.s, self.case.t, self.case.method)


def differentiate(value, s: list[Tensor], t: list[Tensor], method: torch.nn.Module) -> tuple[Tensor, list[Tensor]]:
    """`value`(s, t, method) and its gradients in the student's features and parameters that it uses."""
    s = [f.detach().requires_grad_() for f in s]
    result = value(s, t, method)
    grads = torch.autograd.grad(result, [*s, *method.parameters()], allow_unused=True)
    return result.detach(), [g for g in grads if g is not None]
