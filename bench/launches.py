"""Kernels of a step on a GPU, by name, counted without one (bench/played_gpu.py).

    python -m bench launches [--quick]

A step is forward and backward of a loss module in training, or of `ot_cost`, from features to gradients: the second
one, when log Z is set. `ours` are this library's kernels, `pytorch` its operators that are no views.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.options import keep, parsed, parser
from bench.played_gpu import played
from wcord_fast import CRDLoss, WCoRDLoss
from wcord_fast import functional as F

BATCH, K, NUM_DATA, S_DIM, T_DIM = 64, 16384, 50_000, 64, 256
PRODUCTS = ("mm", "addmm", "bmm")  # the linear layers'


def _step(loss) -> None:
    f_s = torch.empty(BATCH, S_DIM, device="cuda", requires_grad=True)
    f_t = torch.empty(BATCH, T_DIM, device="cuda")
    idx = torch.empty(BATCH, dtype=torch.int64, device="cuda")
    loss(f_s, f_t, idx).backward()


def count(step: Callable[[], Any], launches) -> dict[str, Any]:
    launches.own.clear()
    launches.pytorch.clear()
    step()
    own, others = dict(sorted(launches.own.items())), dict(sorted(launches.pytorch.items()))
    products = sum(n for name, n in others.items() if name in PRODUCTS)
    return {
        "ours": sum(own.values()),
        "pytorch": sum(others.values()) - products,
        "products": products,
        "kernels": {**own, **{f"aten::{name}": n for name, n in others.items()}},
    }


def rows() -> Iterator[dict[str, Any]]:
    """A row per case."""
    for kind in (CRDLoss, WCoRDLoss):
        for plan in ("dense", "gather"):
            labels = torch.arange(NUM_DATA) % 100
            k: dict[str, Any] = {"nce_k" if kind is CRDLoss else "num_negatives": K}
            loss = kind(S_DIM, T_DIM, NUM_DATA, labels=labels, seed=1, plan=plan, **k)
            with played() as launches, converting():
                loss._apply(lambda t: t.to("cuda"))  # `loss.to` would parse the name itself
                loss.contrast.log_z.zero_()  # set: kernels that did not run have estimated nothing
                _step(loss)
                yield {"case": kind.__name__, "plan": plan, **count(partial(_step, loss), launches)}
    for n in (64, 1024):
        with played() as launches:
            x, y = (torch.empty(n, 128, device="cuda", requires_grad=True) for _ in range(2))

            def solve(x: Tensor = x, y: Tensor = y) -> None:
                F.ot_cost(x, y, solver="sinkhorn", eps=0.05).backward()

            yield {"case": "ot_cost", "n": n, **count(solve, launches)}


@contextmanager
def converting() -> Iterator[None]:
    """Modules replace moved parameters by new ones, since an emulated device's storage does not fit into the old."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


def main(arguments: list[str]) -> int:
    a = parsed(parser("launches", __doc__, "all cases, as without it"), arguments)
    result = []
    for row in rows():
        print(json.dumps(row), flush=True)
        result.append(row)
    keep("launches", result, a)
    return 0
