"""The native CPU bank ops in use: determinism, memory, autograd, inputs left alone, errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.bank_cases import problem, relative_error, spec_of
from tests.rank_pool import alone, run_code
from wcord_fast import NegativeSampler
from wcord_fast import functional as F
from wcord_fast.ops import native_module
from wcord_fast.ops.bank import native_cpu, reference

pytestmark = pytest.mark.skipif(
    native_module.load() is None, reason=f"no native module: {native_module.unavailable_reason('cpu')}"
)

PLANS = ("gather", "dense")
MB = 1 << 20


def flat(results: dict) -> list[torch.Tensor]:
    return [r for op in results.values() for r in op]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("class", {"num_data": 3000, "k": 700, "batch": 67, "dim": 128}),
        ("replaced", {"num_data": 5000, "k": 70_000, "batch": 1, "dim": 24}),  # segments, and pieces of one anchor
        ("all", {"num_data": 2600, "batch": 9, "dim": 17}),
    ],
)
def test_results_do_not_depend_on_the_number_of_threads(threads, name, sizes, plan):
    case = problem(name, **sizes)
    threads(1)
    once = flat(case.results(native_cpu, plan))
    for count in (1, 2, 3, 7):
        threads(count)
        for a, b in zip(once, flat(case.results(native_cpu, plan)), strict=True):
            assert torch.equal(a, b), count


def test_the_memory_formula_holds_at_every_size():
    for batch in (1, 2, 64, 1000, 10**6):
        for num_data in (1, 511, 50_000, 1_281_167, 2**31):
            for k in (1, 4096, 65_536, 65_537, 10**9):
                for dim in (1, 128, 2048):
                    for threads in (1, 16, 128 if dim < 2048 else 16):
                        for dtype in (torch.float32, torch.bfloat16, torch.float64):
                            used = native_cpu.gather_bytes(batch, num_data, k, dim, dtype=dtype, threads=threads)
                            assert 0 < used <= 16 * MB + 8 * batch * dim, (batch, num_data, k, dim, threads, dtype)


RSS = """
import resource, sys, torch
from tests.bank_cases import problem
from wcord_fast.ops.bank import native_cpu
torch.set_num_threads(1)
plan, name = sys.argv[1:]
# B x N scores would be 51 MB, rows gathered for all anchors at least 245 MB.
small = problem(name, num_data=500, k=100, batch=64, dim=16)
case = problem(name, num_data=200_000, k=200_000 if name == "none" else 60_000, batch=64, dim=16)
small.results(native_cpu, plan)
rows = sum(float(bank.sum()) for bank in case.banks)  # touches the banks
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
case.results(native_cpu, plan)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", ["none", "replaced"])
def test_no_tensor_of_the_size_of_the_scores(plan, name, tmp_path):
    """The process grows by the formula's 16 MB and a margin for the allocator, whatever B * K and B * N are."""
    done = alone(tmp_path, run_code, RSS, plan, name)
    assert done.returncode == 0 and float(done.stdout) < 24, done


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("grad_output", ["contiguous", "expanded", "sliced"])
def test_autograd_of_the_native_scores(plan, grad_output):
    case = problem("class", anchor=torch.float64, bank=torch.float64)
    x, y = (case.anchors[0].clone().requires_grad_() for _ in range(2))
    s = NegativeSampler(300, 90, labels=torch.arange(300) % 7, seed=3)
    g = {
        "contiguous": torch.arange(1.0, 6.0).double(),
        "expanded": torch.tensor(2.5).double().expand(5),
        "sliced": torch.arange(20.0).double()[1:16:3],
    }[grad_output]
    for anchor, backend in ((x, "native"), (y, "reference")):
        options = {"negatives": s, "plan": plan, "backend": backend}
        loss = F.bank_nce(anchor, case.banks[0], case.index, log_z=4.0, **options)
        loss = loss + F.bank_mean_score(anchor, case.banks[0], case.index, **options)
        loss.backward(g, retain_graph=True)
        s.advance()  # neither the next draws nor an updated bank reach a gradient
        case.banks[0][7] += 1e-3
        loss.backward(g)
        case.banks[0][7] -= 1e-3
        s.step = 0
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_come_in_the_anchors_dtype(dtype):
    case = problem("class", anchor=dtype)
    x = case.anchors[0].clone().requires_grad_()
    s = NegativeSampler(300, 90, labels=torch.arange(300) % 7, seed=3)
    loss = F.bank_nce(x, case.banks[0], case.index, negatives=s, log_z=4.0, backend="native")
    loss.sum().backward()
    assert loss.dtype == torch.float32 and x.grad.dtype == dtype


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", ["class", "given", "all"])
def test_inputs_are_never_modified(name, plan):
    case = problem(name, bank=torch.bfloat16)
    tensors = [case.anchors, *case.banks, case.index, case.log_z, *case.spec.tables]
    before = [t.clone() for t in tensors]
    case.results(native_cpu, plan)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize("plan", PLANS)
def test_strides_and_index_dtypes(plan):
    case = problem("class", dim=24)
    expected = flat(case.results(native_cpu, plan))
    case.anchors = case.anchors.transpose(1, 2).contiguous().transpose(1, 2)
    case.banks = [torch.stack((bank, bank), 2)[:, :, 1] for bank in case.banks]
    case.index = case.index.int().repeat_interleave(2)[::2]
    assert not (case.anchors.is_contiguous() or case.banks[0].is_contiguous() or case.index.is_contiguous())
    for a, b in zip(flat(case.results(native_cpu, plan)), expected, strict=True):
        assert torch.equal(a, b)


def test_a_bank_of_more_than_2_to_31_elements():
    """fp16 [2^24 + 3, 130], all zeros but for the rows that are scored: its pages exist only where they are touched."""
    n, d = 2**24 + 3, 130
    bank = torch.from_numpy(np.zeros((n, d), np.float16))
    rows = torch.tensor([[n - 1, 5, n - 2, n - 1], [n - 3, n - 4, 0, 2**24]])
    index = torch.tensor([n - 5, n - 1])
    g = torch.Generator().manual_seed(0)
    for r in torch.cat((rows.flatten(), index)).unique():
        bank[r] = torch.randn(d, generator=g).half()
    x = torch.randn(2, d, generator=g)
    ours = F.bank_nce(x, bank, index, negatives=rows, log_z=18.0, plan="gather", backend="native")
    few, where = torch.cat((rows.flatten(), index)).unique(return_inverse=True)
    args = (few[:, None] == few).sum(0)  # all ones: `few` has no repetition
    assert args.max() == 1
    small = bank[few].double()
    score = torch.einsum("bd,bkd->bk", x.double(), small[where[:8].view(2, 4)]) / 0.07
    offset = np.log(4 / n + 1e-7) + 18.0
    own = (x.double() * small[where[8:]]).sum(1) / 0.07 - offset
    expected = torch.nn.functional.softplus(-own, threshold=1e9)
    expected += torch.nn.functional.softplus(score - offset, threshold=1e9).sum(1) + 4 * np.log1p(1e-7 * n / 4)
    assert relative_error(ours, expected) < 1e-6


def test_anchor_with_an_empty_pool_is_named():
    case = problem("class")
    spec = spec_of("class", 300, 90, 5)
    spec = type(spec)("class", 299, "no", False, 0, spec.tables)
    for plan in PLANS:
        with pytest.raises(ValueError, match=r"index\[0\] = .* no 299 rows can be drawn for it"):
            native_cpu.bank_mean_score(case.anchors, case.banks, case.index, spec, True, plan, "")


def test_instruction_sets_agree():
    module, case = native_module.module(), problem("replaced", dim=128)
    before, results = module.simd(), []
    for name in ("portable", "avx2", "avx512"):
        if module.set_simd(name):
            results.append(flat(case.results(native_cpu, "gather")))
    module.set_simd(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=3e-6, atol=3e-6)


def test_given_rows_out_of_range_are_named():
    case = problem("given")
    rows = torch.zeros(5, 3, dtype=torch.int64)
    rows[2, 1] = 300
    with pytest.raises(ValueError, match=r"negatives\[2, 1\]: expected a row in \[0, 300\), got 300"):
        F.bank_nce(case.anchors[0], case.banks[0], case.index, negatives=rows, log_z=1.0, backend="native")


def test_alias_tables_equal_plain_python():
    from wcord_fast.ops.sampling import alias

    g = torch.Generator().manual_seed(0)
    for n in (1, 2, 3, 10, 1000, 20_000):
        ramp = torch.arange(n, dtype=torch.float64) + (n == 1)
        uniform = torch.rand(n, generator=g, dtype=torch.float64) + 1e-9
        for weights in (ramp, uniform, uniform**20, torch.ones(n, dtype=torch.float64)):
            threshold, other = alias.alias_table(weights)
            w = weights.numpy() / weights.numpy().max()
            expected = alias._by_python(w * (n / w.sum()))
            assert torch.equal(threshold, expected[0]) and torch.equal(other, expected[1])
            # The table gives every row its share of the draws.
            kept = (threshold.double() + 2.0**64 * (threshold < 0)) / 2.0**64
            fraction = kept.index_add(0, other.long(), 1 - kept) / n
            torch.testing.assert_close(fraction, weights / weights.sum(), rtol=1e-9, atol=1e-12)


def test_reference_and_native_agree_on_modules():
    """One training step of CRDLoss by either backend."""
    from wcord_fast import CRDLoss, use_backend

    losses = []
    for backend in ("native", "reference"):
        torch.manual_seed(0)
        loss_fn = CRDLoss(10, 12, 200, feat_dim=16, nce_k=50, labels=torch.arange(200) % 4, seed=1)
        g = torch.Generator().manual_seed(1)
        with use_backend(backend):
            for step in range(3):
                idx = torch.arange(8) * 7 + step
                losses.append(loss_fn(torch.randn(8, 10, generator=g), torch.randn(8, 12, generator=g), idx).detach())
    torch.testing.assert_close(torch.stack(losses[:3]), torch.stack(losses[3:]), rtol=1e-5, atol=1e-6)
    assert reference.EPS == 1e-7
