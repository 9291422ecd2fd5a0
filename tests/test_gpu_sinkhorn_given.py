"""The optimal-transport kernels for given costs on a device: against float64, without a sync, in graphs."""

from __future__ import annotations

import pytest
import torch

from wcord_fast import functional as F
from wcord_fast.ops import status
from wcord_fast.ops.sinkhorn import matrix_native_cuda, native_cuda

from .ot_oracles import masses

pytestmark = pytest.mark.gpu
SHAPES = [(64, 64, "resident"), (200, 220, "cooperative"), (1, 64, "resident"), (256, 256, "cooperative"),
          (1024, 1000, "cooperative"), (3000, 40, "cooperative")]  # fmt: skip


def problem(n, m, problems=1, own=False, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    c = torch.rand(*([problems] if own else []), n, m, generator=generator, dtype=torch.float64)
    a, b = (masses(2 + k, problems, size, zeros=(0, size // 2) if size > 2 else ()) for k, size in enumerate((n, m)))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return c.to(dtype), a.to(wide), b.to(wide)


def results(tensors, backend, **options):
    """Value, gradients and potentials."""
    c, a, b = (t.clone().requires_grad_() for t in tensors)
    solved = F.ot_solve_from_matrix(c, a, b, value="dual", backend=backend, **options)
    solved.cost.square().sum().backward()
    return [t.detach().double().cpu() for t in (solved.cost, c.grad, a.grad, b.grad, solved.alpha, solved.beta)]


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("eps", [0.05, 0.005])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "m", "regime"), SHAPES)
def test_results_equal_float64(n, m, regime, dtype, eps, own):
    reason = matrix_native_cuda.unavailable_reason(n, m, dtype)
    if reason:
        pytest.skip(reason)
    tensors = problem(n, m, 3, own, dtype)
    on_device = [t.cuda() for t in tensors]
    if dtype == torch.float32:
        card = native_cuda.plan(torch.cuda.current_device(), n, m, dtype, 1, True)
        assert card.regime == regime or card.sms < 132
    expected = results([t.double() for t in tensors], "reference", eps=eps)
    plain = results(on_device, "reference", eps=eps)
    for g, w, p in zip(results(on_device, "native", eps=eps), expected, plain, strict=True):
        finite = w.isfinite()
        assert torch.equal(finite, g.isfinite())
        floor = 1e-11 if dtype == torch.float64 else 1e-3 if dtype == torch.float16 else 1e-4
        bound = max(floor * float(w[finite].abs().max()), 3 * float((p - w)[finite].abs().max()))
        assert float((g - w)[finite].abs().max()) <= bound


@pytest.mark.parametrize("n", [48, 300])
def test_ipot_stops_problem_by_problem_and_bits_repeat(n):
    tensors = [t.cuda() for t in problem(n, n + 3, 5, own=True)]
    options = {"solver": "ipot", "eps": 5.0, "tol": 1e-3, "iters": 60}
    first, second, exact = (
        F.ot_solve_from_matrix(*given, backend=backend, **options)
        for given, backend in ((tensors, "native"), (tensors, "native"), ([t.double() for t in tensors], "reference"))
    )
    assert torch.equal(first.iterations, exact.iterations)
    assert all(torch.equal(u, v) for u, v in zip(first, second, strict=True) if isinstance(u, torch.Tensor))


@pytest.mark.parametrize("n", [48, 300])
def test_no_sync_and_a_graph_replays_on_new_costs(n):
    c, a, b = (t.cuda() for t in problem(n, n, 2, own=True))
    c.requires_grad_()

    def step():
        value = F.ot_cost_from_matrix(c, a, b, iters=10, backend="native")
        return value.detach(), *torch.autograd.grad(value.sum(), c)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.set_sync_debug_mode("error")
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with torch.no_grad():
        c.copy_(c.flip(1))
    graph.replay()
    assert all(torch.equal(u, v) for u, v in zip(captured, step(), strict=True))


def test_a_bad_cost_is_flagged_and_spoils_its_problem_only():
    c, a, b = (t.cuda() for t in problem(32, 32, 3, own=True))
    c[1, 3, 4] = -1
    value = F.ot_cost_from_matrix(c, a, b, backend="native")
    with pytest.raises(ValueError, match="optimal-transport"):
        status.check()
    assert value.isnan().tolist() == [False, True, False]
