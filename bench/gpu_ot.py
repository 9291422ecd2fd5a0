"""Device times of the optimal-transport kernels, forward and gradient in one launch, from replays of a CUDA graph."""

from __future__ import annotations

import json

import torch

CASES = [("sinkhorn", 0.05, n) for n in (64, 256, 1024)] + [("ipot", 0.5, n) for n in (64, 256, 1024)]


def ot_times(event_times) -> list[dict]:
    """One row per case, timed by `event_times(call)` in microseconds.

    n = m, D = 128, 50 iterations, cosine, the gradients of x and y.
    """
    from wcord_fast.ops.sinkhorn import native_cuda

    rows = []
    for solver, eps, n in CASES:
        x, y = torch.randn(2, n, 128, device="cuda")

        def solve(x=x, y=y, solver=solver, eps=eps):
            needs = (True, True, False, False)
            return native_cuda.ot_solve(x, y, None, None, "cosine", solver, eps, 50, None, "cost", *needs)

        solve()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            solve()
        regime = native_cuda.regime(n, n, 128)[0]
        rows.append(
            {"part": "time", "op": "ot", "solver": solver, "n": n, "regime": regime, "us": event_times(graph.replay)}
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows
