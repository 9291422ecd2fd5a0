"""Problems for tests of the bank ops: banks, anchors and samplers of every kind, and float64 answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wcord_fast import NegativeSampler
from wcord_fast.ops.bank import reference
from wcord_fast.ops.sampling.spec import DrawSpec

SAMPLERS = ("none", "self", "class", "replaced", "counts", "auto", "weighted", "all", "all_self", "expected", "given")
SAMPLERS += ("unlabelled", "all_unlabelled")
TAU = 0.07
SCALE, BIAS = torch.tensor(8.0), torch.tensor(-3.0)


@dataclass
class Problem:
    """S = 2 directions; everything on unit rows, log Z such that many terms are neither tiny nor linear."""

    anchors: Tensor  # [2, B, D]
    banks: list[Tensor]  # 2 x [N, D]
    index: Tensor  # [B]
    spec: DrawSpec
    log_z: Tensor  # [2]

    def answers(self) -> dict[str, tuple[Tensor, ...]]:
        """Float64, by the reference's gather plan, on the values as they were rounded to their dtypes."""
        a, b = self.anchors.double(), [bank.double() for bank in self.banks]
        return {
            "nce": reference.bank_nce(a, b, self.index, self.log_z, self.spec, TAU, True, "gather", "reference"),
            "mean": reference.bank_mean_score(a, b, self.index, self.spec, True, "gather", "reference"),
            "log_z": (reference.bank_log_z(a, b, self.index, self.spec, TAU, "gather", "reference"),),
            "infonce": reference.bank_infonce(a, b, self.index, self.spec, TAU, True, "gather", "reference"),
            "sigmoid": reference.bank_sigmoid(a, b, self.index, SCALE, BIAS, self.spec, True, "gather", "reference"),
        }

    def results(self, module, plan: str) -> dict[str, tuple[Tensor, ...]]:
        """The results of `module`, another backend, for this case."""
        a, b = self.anchors, self.banks
        return {
            "nce": module.bank_nce(a, b, self.index, self.log_z, self.spec, TAU, True, plan, "native"),
            "mean": module.bank_mean_score(a, b, self.index, self.spec, True, plan, "native"),
            "log_z": (module.bank_log_z(a, b, self.index, self.spec, TAU, plan, "native"),),
            "infonce": module.bank_infonce(a, b, self.index, self.spec, TAU, True, plan, "native"),
            "sigmoid": module.bank_sigmoid(a, b, self.index, SCALE, BIAS, self.spec, True, plan, "native"),
        }


def spec_of(name: str, num_data: int, k: int, batch: int) -> DrawSpec:
    """The draws named `name`; K = `k` where that is a choice."""
    labels = torch.arange(num_data) % 7
    if name == "given":
        rows = torch.randint(0, num_data, (batch, k + 1), generator=torch.Generator().manual_seed(8)).int()
        return DrawSpec("given", k, "no", False, 0, [rows[:, 1:]])  # strided, with repetitions
    if name == "auto":  # classes so unequal that one pool is smaller than K
        labels = (torch.arange(num_data) < num_data - k // 2).long() + torch.arange(num_data) % 2 * 2
    options = {
        "none": {"k": k, "exclude": "none"},
        "self": {"k": k, "exclude": "self"},
        "class": {"k": k, "labels": labels},
        "replaced": {"k": k, "exclude": "self", "replacement": True},
        "counts": {"k": 40 * num_data, "exclude": "none", "replacement": True},
        "auto": {"k": k, "labels": labels},
        "weighted": {"k": k, "weights": torch.arange(num_data) % 5 + 0.1},
        "all": {"k": "all", "labels": labels},
        "all_self": {"k": "all", "exclude": "self"},
        "expected": {"k": k, "labels": labels, "expected": True},
        "unlabelled": {"k": k, "labels": labels - 3},
        "all_unlabelled": {"k": "all", "labels": labels - 3},
    }[name]
    return NegativeSampler(num_data, seed=3, **options).spec(anchor_offset=5)


def problem(
    name: str,
    *,
    dim: int = 20,
    num_data: int = 300,
    batch: int = 5,
    k: int = 90,
    anchor: torch.dtype = torch.float32,
    bank: torch.dtype = torch.float32,
) -> Problem:
    g = torch.Generator().manual_seed(dim)
    rows = torch.nn.functional.normalize(torch.randn(2, num_data + batch, dim, generator=g, dtype=torch.float64), dim=2)
    index = torch.randint(0, num_data, (batch,), generator=g)
    return Problem(
        rows[:, num_data:].to(anchor),
        [rows[s, :num_data].to(bank) for s in range(2)],
        index,
        spec_of(name, num_data, k, batch),
        torch.tensor([3.0, 9.0]),
    )


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """The largest error of a row (or number) in units of that row's norm."""
    if theirs.dim() < 3:
        return float(((ours.double() - theirs).abs() / theirs.abs().clamp_min(1e-300)).max())
    return float(((ours.double() - theirs).norm(dim=-1) / theirs.norm(dim=-1).clamp_min(1e-300)).max())
