"""DrawSpecs with random tables for tests of the draws."""

from __future__ import annotations

import random

import torch

from wcord_fast.ops.sampling.spec import TABLES, DrawSpec

from . import philox_python


def signed64(x: int) -> int:
    """The int64 with the bits of a uint64."""
    return x - 2**64 if x >= 2**63 else x


class Case:
    """One batch of draws, as a DrawSpec and as the arguments of the plain Python implementation."""

    def __init__(self, rng: random.Random, num_data: int, batch: int, k: int, source: str, replacement: str):
        self.num_data, self.k, self.source, self.replacement = num_data, k, source, replacement
        self.seed, self.step = rng.getrandbits(64), rng.getrandbits(rng.choice((3, 20, 40)))
        self.anchor_offset = rng.choice((0, 7, 100_000))
        self.index = [rng.randrange(num_data) for _ in range(batch)]
        classes = min(num_data, rng.choice((2, 3, 10)))
        self.labels = [i % classes for i in range(num_data)]
        rng.shuffle(self.labels)
        self.threshold = [rng.getrandbits(64) for _ in range(num_data)]
        self.alias = [rng.randrange(num_data) for _ in range(num_data)]

    def spec(self) -> DrawSpec:
        label = torch.tensor(self.labels)
        order = torch.argsort(label, stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(self.num_data)
        start = torch.cat((torch.zeros(1, dtype=torch.int64), torch.bincount(label).cumsum(0)))
        tables = {
            "state": torch.tensor([signed64(self.seed), self.step]),
            "label": label.int(),
            "order": order.int(),
            "rank": rank.int(),
            "class_start": start.int(),
            "threshold": torch.tensor([signed64(t) for t in self.threshold]),
            "alias": torch.tensor(self.alias).int(),
        }
        chosen = [tables[name] for name in TABLES[self.source]]
        return DrawSpec(self.source, self.k, self.replacement, False, self.anchor_offset, chosen)

    def expected(self) -> torch.Tensor:
        """int64 [B, K] by the plain Python implementation."""
        weighted = self.source == "weighted"
        rows = philox_python.draw(
            self.index,
            self.num_data,
            self.k,
            seed=self.seed,
            step=self.step,
            exclude="none" if weighted else self.source,
            replacement=self.replacement,
            labels=self.labels,
            alias=(self.threshold, self.alias) if weighted else None,
            anchor_offset=self.anchor_offset,
        )
        return torch.tensor(rows)


def cases(seed: int, count: int) -> list[Case]:
    """Random cases over sizes, sources and replacement rules, all of them legal."""
    rng = random.Random(seed)
    out = []
    while len(out) < count:
        source = rng.choice(("none", "self", "class", "weighted"))
        replacement = "yes" if source == "weighted" else rng.choice(("no", "yes", "auto"))
        num_data = rng.choice((1, 2, 3, 5, 8, 17, 64, 100, 257, 1000))
        if num_data == 1 and source in ("self", "class"):
            continue
        case = Case(rng, num_data, rng.choice((1, 2, 5)), rng.choice((1, 2, 7, 31, 600, 1300)), source, replacement)
        smallest = case.num_data - {"self": 1, "class": max(case.labels.count(c) for c in case.labels)}.get(source, 0)
        if smallest < 1:
            continue
        if replacement == "no":
            case.k = rng.choice((1, max(1, smallest // 2), smallest))
        out.append(case)
    return out
