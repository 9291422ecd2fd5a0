"""Training steps of the loss modules on a device: against the CPU in float64, and their kernels' count."""

from __future__ import annotations

import copy

import pytest
import torch

from wcord_fast import CRDLoss, WCoRDLoss, use_backend

pytestmark = pytest.mark.gpu

B, N, S_DIM, T_DIM, K = 48, 900, 64, 256, 300
CASES = {
    "crd": (CRDLoss, {"nce_k": K}),
    "crd bf16": (CRDLoss, {"nce_k": K, "bank_dtype": torch.bfloat16}),
    "wcord": (WCoRDLoss, {"num_negatives": K, "lambda_lckt": 1.0}),
    "ball": (WCoRDLoss, {"num_negatives": K, "embed_norm": "ball", "lckt_pairs": "only"}),
}


def batch(seed):
    g = torch.Generator().manual_seed(seed)
    f_s, f_t = (torch.randn(B, dim, generator=g) for dim in (S_DIM, T_DIM))
    return f_s, f_t, torch.randint(N, (B,), generator=g)


def step(loss, f_s, f_t, idx, device, dtype):
    leaf = f_s.to(device, dtype).requires_grad_()
    loss.zero_grad(set_to_none=True)
    value = loss(leaf, f_t.to(device, dtype), idx.to(device))
    value.backward()
    grads = [p.grad for p in loss.parameters() if p.grad is not None]
    return [t.double().cpu() for t in (value.detach(), leaf.grad, *grads)], value


@pytest.mark.parametrize("plan", ["gather", "dense"])
@pytest.mark.parametrize("case", CASES)
def test_steps_equal_the_reference(case, plan):
    kind, options = CASES[case]
    torch.manual_seed(0)
    theirs = kind(S_DIM, T_DIM, N, labels=torch.arange(N) % 10, seed=1, plan=plan, **options)
    ours = copy.deepcopy(theirs).cuda()
    theirs.double()
    exact = 2e-2 if case == "crd bf16" else 1e-4
    for seed in range(4):
        actual, value = step(ours, *batch(seed), "cuda", torch.float32)
        assert "ContrastStep" in str(value.grad_fn)
        with use_backend("reference"):
            expected, _ = step(theirs, *batch(seed), "cpu", torch.float64)
        assert all((f - w).abs().max() <= exact * w.abs().max() for f, w in zip(actual, expected, strict=True))
    there = theirs.state_dict()
    for name, value in ours.state_dict().items():
        if value.is_floating_point():
            assert (value.cpu() - there[name]).abs().max() <= 4 * exact, name
        else:
            assert torch.equal(value.cpu(), there[name]), name


def test_graphed_step_equals_the_eager_one():
    torch.manual_seed(0)
    eager = WCoRDLoss(S_DIM, T_DIM, N, num_negatives=K, seed=1).cuda()
    graphed = copy.deepcopy(eager)
    f_s, f_t, idx = (t.cuda() for t in batch(0))
    f_s.requires_grad_()
    for loss in (eager, graphed):  # log Z is set, and every kernel chosen
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                loss(f_s, f_t, idx).backward()
        torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    graphed.zero_grad(set_to_none=True)
    f_s.grad = None
    with torch.cuda.graph(graph):
        value = graphed(f_s, f_t, idx)
        value.backward()
    for _ in range(3):
        graph.replay()
        assert torch.equal(value, eager(f_s.detach(), f_t, idx))
    assert torch.equal(graphed.contrast.sampler.state, eager.contrast.sampler.state)
    assert torch.equal(graphed.contrast.memory_v1.rows, eager.contrast.memory_v1.rows)
