"""The native CPU code of the contrast ops: instruction sets, threads, blocks, ranges and memory."""

from __future__ import annotations

import pytest
import torch

from wcord_fast import functional as F
from wcord_fast.ops import native_module

from .test_batch_functions import CRITICS, function, gradients, options, problem

pytestmark = pytest.mark.skipif(native_module.load() is None, reason=str(native_module.unavailable_reason("cpu")))

# Blocks of 96 anchors, panels of 8 or 16 (AVX-512: 32) rows, 16 panels a chunk, tiles of 6 (8) anchors.
SIZES = [(95, 5), (96, 16), (97, 33), (300, 12)]


def step(critic, backend, dtype, batch, dim, norm=1.0, **more):
    x, y, labels, index, weight = problem(batch, dim, dtype)
    x, y = (norm * x).requires_grad_(), (norm * y).requires_grad_()
    ids = {} if more.pop("plain", False) else {"labels": labels, "index": index}
    losses = function(critic)(x, y, **ids, backend=backend, **{**options(critic), **more})
    return losses.detach(), *gradients(losses, weight, x, y)


def assert_near(actual, wanted, dtype):
    limit = 2e-6 if dtype == torch.float32 else 1e-13
    for a, b in zip(actual, wanted, strict=True):
        assert torch.isfinite(a).all() and (a - b).norm() <= limit * (1 + b.norm())


@pytest.mark.parametrize("batch,dim", SIZES)
@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("critic", CRITICS)
def test_every_instruction_set_equals_the_reference(simd, critic, dtype, plain, batch, dim):
    actual = step(critic, "native", dtype, batch, dim, plain=plain)
    assert_near(actual, step(critic, "reference", dtype, batch, dim, plain=plain), dtype)


@pytest.mark.parametrize("norm", [1.0, 4.0])  # scores within the range of a sum of exp, and beyond
@pytest.mark.parametrize("critic", CRITICS)
def test_the_number_of_threads_changes_no_bit(critic, norm):
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(step(critic, "native", torch.float32, 600, 20, norm))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("norm", [3.0, 10.0, 100.0])
def test_scores_beyond_the_range_of_fp32_s_exp_equal_float64(simd, norm):
    actual = step("infonce", "native", torch.float32, 200, 40, norm)
    wanted = step("infonce", "reference", torch.float64, 200, 40, norm)
    for a, b in zip(actual, wanted, strict=True):
        assert (a.double() - b).norm() <= 3e-7 * norm**2 * 10 * b.norm() / 2  # a score's rounding, relative to its size


def test_products_that_overflow_are_refused():
    x = torch.full((3, 4), 1e30)
    with pytest.raises(ValueError, match=r"x, y: expected rows whose products are finite in torch.float32"):
        F.batch_infonce(x, x, backend="native")
    assert torch.isfinite(F.batch_infonce(x.double(), x.double(), backend="native")).all()
    with pytest.raises(ValueError, match=r"x, y: expected rows whose products are finite in torch.float64"):
        F.batch_infonce(x.double() * 1e140, x.double() * 1e140, backend="native")


def test_memory_grows_with_the_batch_not_with_its_square():
    from bench.measure import peak_megabytes

    def megabytes(batch):
        x, y, *_ = problem(batch, 16)
        x, y = x.requires_grad_(), y.requires_grad_()
        return peak_megabytes(lambda: torch.autograd.grad(F.batch_infonce(x, y, backend="native").sum(), (x, y)))

    megabytes(512)
    small, large = megabytes(4096), megabytes(8192)  # the scores of 8192 are 256 MB
    assert large < 24 and large < 3 * max(small, 2)
