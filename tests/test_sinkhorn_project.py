"""`sinkhorn_project` against the iteration written out in float64, its gradient against autograd through it."""

import pytest
import torch

import wcord_fast
from wcord_fast import functional as F
from wcord_fast.ops.sinkhorn.project import project_op

BACKENDS = ("native", "reference")


def textbook(logits, iters, eps=1.0):
    """Sums and divisions, in the dtype of the logits; differentiable."""
    p = torch.exp(logits / eps)
    for _ in range(iters):
        p = p / p.sum(-1, keepdim=True)
        p = p / p.sum(-2, keepdim=True)
    return p


def logits(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n", [1, 2, 4, 7, 16])
@pytest.mark.parametrize("iters", [1, 20])
def test_value_and_gradient_equal_those_of_the_iterations(backend, n, iters):
    x = (2 * logits(13, n, n)).requires_grad_()  # a whole group of lanes and a part of one
    weight = logits(13, n, n, seed=1)
    actual, want = F.sinkhorn_project(x, iters, 0.5, backend=backend), textbook(x, iters, 0.5)
    torch.testing.assert_close(actual, want, rtol=1e-9, atol=1e-13)
    ours, theirs = (torch.autograd.grad((p * weight).sum(), x)[0] for p in (actual, want))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11)


def test_each_instruction_set_agrees_with_float64(simd):
    x = logits(37, 5, 5, dtype=torch.float32).requires_grad_()
    weight = logits(37, 5, 5, seed=1)
    wide = x.detach().double().requires_grad_()
    actual, want = F.sinkhorn_project(x, backend="native"), textbook(wide, 20)
    torch.testing.assert_close(actual.double(), want, rtol=2e-6, atol=1e-7)
    (actual * weight.float()).sum().backward()
    (want * weight).sum().backward()
    torch.testing.assert_close(x.grad.double(), wide.grad, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_beyond_the_range_of_exp_are_solved_in_the_log_domain(backend, dtype):
    x = logits(9, 4, 4)
    x[3] *= 400 if dtype == torch.float32 else 4000
    x[5, :, 2] -= 200 if dtype == torch.float32 else 2000  # a column that receives next to nothing at first
    x = x.to(dtype).requires_grad_()
    log = x.detach().double()
    for _ in range(20):
        log = log - log.logsumexp(-1, keepdim=True)
        log = log - log.logsumexp(-2, keepdim=True)
    actual = F.sinkhorn_project(x, backend=backend)
    torch.testing.assert_close(actual.double(), log.exp(), rtol=1e-3, atol=1e-5 if dtype == torch.float32 else 1e-11)
    actual.square().sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_shapes_strides_and_dtypes(backend):
    x = logits(6, 4, 4, 3).permute(0, 3, 1, 2)  # no layout of its own
    want = textbook(x, 20)
    torch.testing.assert_close(F.sinkhorn_project(x, backend=backend), want)
    torch.testing.assert_close(F.sinkhorn_project(x[0, 0], backend=backend), want[0, 0])
    assert F.sinkhorn_project(x[:0], backend=backend).shape == (0, 3, 4, 4)
    half = x.to(torch.bfloat16).requires_grad_()
    actual = F.sinkhorn_project(half, backend=backend)
    actual.sum().backward()
    assert actual.dtype == half.grad.dtype == torch.bfloat16
    torch.testing.assert_close(actual.double(), textbook(half.detach().double(), 20), rtol=4e-3, atol=1e-3)


def test_result_is_doubly_stochastic_and_independent_of_batch_and_threads():
    x = logits(21, 6, 6, dtype=torch.float32)
    whole = F.sinkhorn_project(x, 200)
    for dim in (-1, -2):
        torch.testing.assert_close(whole.sum(dim), torch.ones(21, 6), rtol=0, atol=2e-5)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(F.sinkhorn_project(x, 200), whole)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(F.sinkhorn_project(x[17], 200), whole[17])


def test_no_problem_keeps_the_graph():
    x = torch.randn(0, 3, 3, requires_grad=True)
    F.sinkhorn_project(x).sum().backward()
    assert x.grad.shape == (0, 3, 3)


def test_gradcheck_and_no_second_derivative():
    x = logits(3, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: F.sinkhorn_project(z, 7, 0.7), x)
    (grad,) = torch.autograd.grad(F.sinkhorn_project(x).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="sinkhorn_project cannot be differentiated again"):
        grad.sum().backward()
    with pytest.raises(NotImplementedError, match="sinkhorn_project"):
        torch.func.grad(lambda z: F.sinkhorn_project(z).square().sum())(x.detach())


def test_projection_compiles_and_passes_opcheck():
    x = logits(5, 4, 4, dtype=torch.float32).requires_grad_()
    step = torch.compile(lambda z: F.sinkhorn_project(z, 10).square().sum(), fullgraph=True, backend="aot_eager")
    step(x).backward()
    compiled, x.grad = x.grad, None
    F.sinkhorn_project(x, 10).square().sum().backward()
    torch.testing.assert_close(compiled, x.grad)
    given = (x.detach(), x.detach(), 1.0, 5, "auto")
    torch.library.opcheck(project_op, given)
    assert wcord_fast.explain("sinkhorn_project").op == "ot_project"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("given", "options", "error", "words"),
    [
        ([1.0], {}, TypeError, "logits: expected a tensor .*list"),
        (torch.zeros(3), {}, ValueError, r"logits: expected a tensor \[..., n, n\], got \[3\]"),
        (torch.zeros(2, 3, 4), {}, ValueError, r"logits: expected square .*\[2, 3, 4\]"),
        (torch.zeros(2, 3, 3, dtype=torch.int64), {}, TypeError, "logits: .*int64"),
        (torch.zeros(17, 17), {}, NotImplementedError, "n of at most 16, got 17"),
        (torch.zeros(3, 3), {"iters": 0}, ValueError, "iters: .*got 0"),
        (torch.zeros(3, 3), {"eps": 0.0}, ValueError, "eps: .*got 0"),
        (torch.zeros(3, 3), {"eps": -1.0}, ValueError, "eps: .*got -1"),
        (
            torch.zeros(2, 3, 3).index_fill_(0, torch.tensor([1]), torch.nan),
            {},
            ValueError,
            r"logits\[1, 0, 0\]: .*nan",
        ),
        (torch.eye(3)[:1].expand(3, 3) * 1e30, {"eps": 1e-20}, ValueError, "logits: values up to 1e.30 overflow"),
    ],
)
def test_bad_input_is_named(backend, given, options, error, words):
    with pytest.raises(error, match=words):
        F.sinkhorn_project(given, **options, backend=backend)
