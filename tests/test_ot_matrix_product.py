"""The matrix products for given costs on a GPU, which the CPU runs too, and the choice of a backend for them."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import wcord_fast
from tests import ot_oracles
from wcord_fast.ops.sinkhorn import backends, matrix, matrix_product, matrix_reference, native_cuda, reference

N, M, G = 23, 37, 5


def options(solver="sinkhorn", eps=0.1, iters=30, tol=None, reach=(None, None)):
    return reference.SolveOptions("given", solver, eps, iters, tol, "cost", False, False, False, False, *reach)


def problem(dtype=torch.float32):
    c = 1.5 * torch.rand(N, M, generator=torch.Generator().manual_seed(0))
    a = ot_oracles.masses(1, G, N, zeros=(3,), dtype=dtype)
    return c.to(dtype), a, ot_oracles.masses(2, G, M, zeros=(0, 5), dtype=dtype)


@pytest.mark.parametrize(
    "asked",
    [
        options(),
        options("ipot", 0.8),
        options(reach=(0.4, None)),
        options(reach=(0.3, 0.7)),
        options("ipot", 20.0, 45, tol=2e-2),
        options(eps=0.2, tol=1e-6, iters=60),
    ],
    ids=str,
)
def test_iterations_equal_the_float64_loop(asked):
    scaled = matrix_product.iterate(*problem(), asked)
    alpha, beta, scale, iterations = reference.iterate(
        problem(torch.float64)[0][None], *problem(torch.float64)[1:], asked
    )
    assert scaled.solved.all() and scaled.iterations.tolist() == iterations.tolist()
    for have, want in zip(scaled[:3], (alpha, beta, scale), strict=True):
        torch.testing.assert_close(have.double(), want, rtol=1e-5, atol=2e-5)


def test_a_cost_out_of_range_is_not_solved():
    c, a, b = problem()
    assert not matrix_product.iterate(c, a, b, options(eps=0.01)).solved.any()  # 150 nats in a row
    assert not matrix_product.iterate(
        c + 9, a, b, options(reach=(1.0, None))
    ).solved.any()  # a damped step keeps a shift
    assert matrix_product.iterate(c + 9, a, b, options()).solved.all()
    c[0, 0] = torch.nan
    assert not matrix_product.iterate(c, a, b, options()).solved.any()


@pytest.mark.parametrize("tol", [None, 1e-3])
def test_nothing_waits_for_the_device(tol):
    """A fake tensor has no data: whatever reads a value raises."""
    with FakeTensorMode():
        c, a, b = torch.empty(N, M), torch.empty(G, N), torch.empty(G, M)
        assert matrix_product.iterate(c, a, b, options(tol=tol)).solved.shape == (G,)
        with pytest.raises(Exception, match="_local_scalar_dense"):
            matrix_product.iterate(c, a, b, options(tol=tol)).solved.all().item()


def test_the_choice_of_a_backend_on_cuda(monkeypatch):
    monkeypatch.setattr("wcord_fast.ops.dispatch.cannot_run", lambda backend, device: None)
    monkeypatch.setattr(native_cuda, "unavailable_reason", lambda n, *_, **__: "too large" if n > 1000 else None)
    f32, f64 = torch.float32, torch.float64
    for dtype, (problems, n, own, relaxed), expected in (
        (f32, (64, 100, False, False), "native"),
        (f64, (4096, 100, False, False), "native"),
        (f32, (4096, 100, False, False), "triton"),  # products
        (f32, (4096, 100, True, False), "native"),
        (f32, (64, 100, False, True), "triton"),
        (f32, (1, 2000, False, False), "triton"),
        (f64, (1, 2000, False, False), "reference"),
        (f64, (64, 100, False, True), "reference"),
    ):
        sizes = matrix.Sizes(problems, n, 100, own, relaxed)
        assert matrix.choose("cuda", dtype, "auto", sizes).backend == expected, (dtype, sizes)
    assert matrix.choose("cuda", f32, "native", matrix.Sizes(4096, 100, 100, False)).backend == "native"
    assert matrix.choose("cuda", f64, "auto").backend == "native"  # a gradient
    assert wcord_fast.explain("ot_cost_from_matrix", n=2000, device="cuda", dtype=f64).backend == "reference"
    assert "products" in wcord_fast.explain("ot_matrix", n=100, problems=4096, device="cuda").reason
    with pytest.raises(NotImplementedError, match="float64"):
        matrix.choose("cuda", f64, "triton")
    with pytest.raises(NotImplementedError, match="reach"):
        matrix.choose("cuda", f32, "native", matrix.Sizes(1, 8, 8, False, relaxed=True))
    assert backends.choose_for(64, 64, 8, f32, "cuda", relaxed=True).backend == "triton"
    assert backends.choose_for(64, 64, 8, f32, "cuda", cost="euclidean").backend == "native"
    with pytest.raises(NotImplementedError, match="not supported"):
        backends.choose_for(64, 64, 8, f32, "cuda", "native", relaxed=True)


def test_without_triton_products_are_left_to_the_kernels_in_c(monkeypatch):
    monkeypatch.setattr(
        "wcord_fast.ops.dispatch.cannot_run", lambda backend, device: "absent" if backend == "triton" else None
    )
    monkeypatch.setattr(native_cuda, "unavailable_reason", lambda *_, **__: None)
    assert matrix.choose("cuda", torch.float32, "auto", matrix.Sizes(4096, 100, 100, False)).backend == "native"


def test_modules_of_every_backend_have_the_reference_functions():
    for module in (matrix._native(), matrix._native_cuda(), matrix._triton(), matrix_reference):
        assert callable(module.solve) and callable(module.gradient)
