"""The registered ops: opcheck, fake tensors, torch.compile, autocast, the device path."""

import shutil

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests import ot_oracles as oracle
from tests.grid import grid
from wcord_fast import functional as F
from wcord_fast.ops import status
from wcord_fast.ops.sinkhorn.autograd import ot_plan_op, ot_solve_op


def pair(dtype=torch.float32, g=2, n=6, m=5):
    return oracle.features(0, g, n, 3, dtype=dtype), oracle.features(1, g, m, 3, dtype=dtype)


DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize(("dtype", "needs"), grid(DTYPES, [(True,) * 4, (False,) * 4, (True, False, False, True)]))
def test_opcheck_of_the_solve(dtype, needs):
    x, y = pair(dtype)
    a = oracle.masses(2, 6, 2, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    a = (a / a.sum(0)).mT  # column-major
    torch.library.opcheck(
        ot_solve_op, (x, y, a, None, "cosine", "sinkhorn", 0.1, 12, 1e-6, "dual", *needs, "reference")
    )
    torch.library.opcheck(
        ot_solve_op,
        (
            x.mT.contiguous().mT,
            y,
            None,
            None,
            "sqeuclidean",
            "ipot",
            0.5,
            3,
            None,
            "cost",
            *needs[:2],
            False,
            False,
            "auto",
        ),
    )


def test_opcheck_of_the_plan():
    x, y = pair()
    s = F.ot_solve(x, y)
    torch.library.opcheck(ot_plan_op, (x, y, s.alpha, s.beta, s.scale, "cosine"))


def test_fake_tensors_have_the_real_shapes_and_dtypes():
    for dtype in (torch.bfloat16, torch.float64):
        x, y = pair(dtype)
        real = (*F.ot_solve(x, y, debias=True), F.ot_plan(x, y))
        with FakeTensorMode() as mode:
            fx, fy = mode.from_tensor(x), mode.from_tensor(y)
            fake = (*F.ot_solve(fx, fy, debias=True), F.ot_plan(fx, fy))
        for r, f in zip(real, fake, strict=True):
            if r is None:  # masses of a problem that is balanced
                assert f is None
                continue
            assert (f.shape, f.dtype, f.stride()) == (r.shape, r.dtype, r.stride())


def step(x, y, a, **kwargs):
    solved = F.ot_solve(x, y, a=a, **kwargs)
    return solved.cost.sum() * 2 + F.ot_plan(x, y).max(), solved.alpha, solved.iterations


def compare(compiled, kwargs, sizes):
    for n, m in sizes:
        grads, outs = [], []
        for run in (step, compiled):
            x, y = (t.requires_grad_() for t in pair(n=n, m=m))
            a = torch.full((n,), 1 / n, requires_grad=kwargs.get("value") == "dual")
            out = run(x, y, a, **kwargs)
            out[0].backward()
            outs.append(out)
            grads.append((x.grad, y.grad, a.grad))
        torch.testing.assert_close(outs[0], outs[1])
        torch.testing.assert_close(grads[0], grads[1])


DUAL = {"value": "dual", "solver": "sinkhorn", "debias": True, "tol": 1e-3}


@pytest.mark.parametrize(
    ("kwargs", "dynamic"), grid([DUAL, {}, {"cost": "sqeuclidean", "debias": True}], [False, True])
)
def test_compiles_as_one_graph(kwargs, dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    compare(compiled, kwargs, [(6, 5), (7, 9)] if dynamic else [(6, 5)])


def test_annealed_options_compile_without_a_graph_for_every_value():
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    x, y = pair()
    compiled = torch.compile(F.ot_cost, fullgraph=True, backend=backend)
    for i in range(5):
        options = {"eps": 0.5 - 0.05 * i, "iters": 10 + i}
        torch.testing.assert_close(compiled(x, y, **options), F.ot_cost(x, y, **options))
    assert len(graphs) <= 2


@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_compiles_with_inductor():
    torch._dynamo.reset()
    compare(torch.compile(step, fullgraph=True), {"value": "dual", "solver": "sinkhorn"}, [(6, 5)])


def test_one_tensor_as_x_and_y_compiles():
    torch._dynamo.reset()
    x = pair()[0].requires_grad_()
    weights = torch.full((2, 6), 1 / 6, requires_grad=True)

    def self_cost(x, a):
        return F.ot_cost(x, x, a=a, b=a, solver="sinkhorn", value="dual").sum()

    expected = torch.autograd.grad(self_cost(x, weights), (x, weights))
    compiled = torch.compile(self_cost, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(x, weights), (x, weights)), expected)


@pytest.mark.parametrize("cost", ["cosine", "sqeuclidean"])
def test_autocast_does_not_change_the_result(cost):
    x, y = (t.requires_grad_() for t in pair(n=30, m=20))
    plain, plan = F.ot_cost(x, y, cost=cost), F.ot_plan(x, y, cost=cost)
    expected = torch.autograd.grad(plain.sum(), (x, y))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, cast_plan = F.ot_cost(x, y, cost=cost), F.ot_plan(x, y, cost=cost)
        actual = torch.autograd.grad(cast.sum(), (x, y))
    assert torch.equal(cast, plain) and torch.equal(cast_plan, plan)
    assert all(torch.equal(p, q) for p, q in zip(actual, expected, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("value", ["cost", "dual"])
def test_cuda_equals_the_cpu_without_a_synchronisation(value):
    x, y = pair(n=40, m=30)
    kwargs = {"solver": "sinkhorn", "value": value, "tol": 1e-4, "backend": "reference"}
    expected = F.ot_solve(x, y, **kwargs)
    x, y = x.cuda().requires_grad_(), y.cuda()
    F.ot_cost(x, y, **kwargs)  # makes the status word
    torch.cuda.set_sync_debug_mode("error")
    try:
        solved = F.ot_solve(x, y, **kwargs)
        solved.cost.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(solved.cost.detach().cpu(), expected.cost, rtol=1e-5, atol=1e-6)
    assert x.grad.isfinite().all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_flags_a_bad_problem_and_returns_nan_for_it_alone():
    x, y = (t.cuda() for t in pair())
    x[1, 2, 0] = float("nan")
    cost = F.ot_cost(x.requires_grad_(), y, backend="reference")
    (grad,) = torch.autograd.grad(cost.sum(), x)
    assert cost.isnan().tolist() == [False, True]
    assert grad[0].isfinite().all() and grad[1].isnan().all()
    with pytest.raises(ValueError, match="NaN or inf"):
        status.check(x.device)
    status.check(x.device)  # cleared
