"""The gather kernels of the bank, thread by thread on the CPU, through their own Python launchers, against float64."""

from __future__ import annotations

from ctypes import c_uint64

import numpy as np
import pytest
import torch

from wcord_fast.ops.bank import critics, native_cuda, op, reference
from wcord_fast.ops.bank.autograd import spec_args
from wcord_fast.ops.bank.part import Part
from wcord_fast.ops.dispatch import Choice
from wcord_fast.ops.sampling.reference import draw
from wcord_fast.ops.sampling.spec import ALL, DrawSpec
from wcord_fast.ops.status import Code

from .cuda_bank_problem import BIAS, SCALE, TEMPERATURE, Problem, assert_relative, close, close_sums, flags, given
from .cuda_on_cpu import build
from .cuda_on_cpu.module import emulated

SOURCES = [
    *sorted((build.CSRC / "cuda").glob("bank_gather*.cu")),
    *(build.CSRC / "cuda" / f"{name}.cu" for name in ("bank_finish", "bank_critic_finish")),
]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
EVERY_SOURCE = [
    ("none", "no"), ("self", "no"), ("class", "no"), ("none", "yes"), ("self", "auto"), ("class", "yes"),
    ("weighted", "yes"), ("given", "no"), ("whole", "no"), ("expected", "no"),
]  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build.compile_library(SOURCES, tmp_path_factory.mktemp("bank"))


@pytest.fixture
def kernels(library):
    """The library; `native_cuda` launches its kernels."""
    with emulated(library):
        yield library


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("dim", "k"),
    [(128, 300), (64, 33), (256, 65), (1, 7), (33, 300), (130, 300), (300, 40), (8, 33), (72, 65), (200, 40)],
)
def test_every_width_and_bank_dtype(kernels, dtype, dim, k):
    Problem(700, 2, k, dim, dtype=dtype).check()


@pytest.mark.parametrize(("source", "replacement"), EVERY_SOURCE)
@pytest.mark.parametrize("dim", [128, 20])
def test_every_source(kernels, source, replacement, dim):
    Problem(90, 3, 40, dim, source, replacement).check()
    Problem(90, 3, 40, dim, source, replacement, directions=1, dtype=torch.bfloat16).check(("nce",))


@pytest.mark.parametrize("dim", [128, 5])
@pytest.mark.parametrize(
    ("num_data", "batch", "k", "source", "replacement"),
    [
        (1, 1, 1, "none", "no"),
        (2, 2, 1, "self", "no"),
        (40, 1, 39, "self", "no"),  # K = P
        (40, 1, 40, "none", "no"),
        (33, 2, 257, "self", "auto"),  # more draws than rows
        (3, 1, 1300, "none", "yes"),  # counts above 255
        (1400, 2, 1290, "self", "no"),  # several splits and tiles, the last of them ragged
        (1400, 1, 1, "whole", "no"),  # a last split without rows
        (40, 2, 90, "expected", "no"),  # charged for more negatives than there are rows
    ],
)
def test_edge_sizes(kernels, num_data, batch, k, source, replacement, dim):
    Problem(num_data, batch, k, dim, source, replacement).check()


def test_bank_of_one_row_without_exclusion(kernels):
    problem = Problem(1, 2, 1, 128, "none")
    problem.spec = DrawSpec("none", ALL, "no", False, 0, problem.spec.tables)
    problem.check()


@pytest.mark.parametrize(("source", "replacement"), EVERY_SOURCE)
@pytest.mark.parametrize("dim", [128, 20])
def test_parts_of_every_source(kernels, source, replacement, dim):
    Problem(90, 3, 40, dim, source, replacement).check_parts((0, 1, 33, 34, 90))


@pytest.mark.parametrize("dim", [128, 5])
@pytest.mark.parametrize(
    ("num_data", "batch", "k", "source", "replacement", "cuts"),
    [
        (90, 2, 89, "self", "no", (0, 45, 90)),  # K = P
        (3, 1, 1300, "none", "yes", (0, 1, 2, 3)),  # parts of one row, drawn hundreds of times
        (1400, 2, 1290, "self", "no", (0, 700, 701, 1399, 1400)),  # several splits and tiles
        (1400, 1, 1, "whole", "no", (0, 3, 1400)),
    ],
)
def test_edges_of_parts(kernels, num_data, batch, k, source, replacement, cuts, dim):
    Problem(num_data, batch, k, dim, source, replacement).check_parts(cuts)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_parts_in_other_dtypes(kernels, dtype):
    Problem(300, 2, 100, 64, dtype=dtype).check_parts((0, 111, 300))


@pytest.mark.parametrize("dim", [128, 20])
def test_part_of_all_rows_equals_the_whole_bank_bit_for_bit_under_any_schedule(kernels, dim):
    problem = Problem(300, 2, 600, dim, "self", "yes")
    args = problem.index, problem.log_z, problem.spec, TEMPERATURE, True, "gather", "auto"
    whole = native_cuda.bank_nce(problem.anchors, problem.banks, *args, Part(0, 300))
    assert all(torch.equal(a, b) for a, b in zip(whole, problem.nce(), strict=True))
    for score in (problem.infonce, problem.sigmoid):
        assert all(torch.equal(a, b) for a, b in zip(score(part=Part(0, 300)), score(), strict=True))
    results = []
    some, part = [b[90:201] for b in problem.banks], Part(90, 300)
    for seed in range(3):
        kernels.cuda_on_cpu_seed(c_uint64(seed))
        others = (*problem.infonce(banks=some, part=part), *problem.sigmoid(banks=some, part=part))
        results.append((*native_cuda.bank_nce(problem.anchors, some, *args, part), *others))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dim", [128, 20])
def test_bad_values_are_bad_in_every_part(kernels, dim):
    problem = Problem(60, 4, 40, dim, "given")
    problem.spec.tables[0][1, 39], problem.index[2] = 60, -1
    problem.anchors[1, 3, 0] = torch.nan
    bad = torch.tensor([[False, True, True, False], [False, True, True, True]])
    args = problem.index, problem.log_z, problem.spec, TEMPERATURE, True, "gather", "auto"
    for lo, hi in ((0, 13), (13, 60)):
        part, banks = Part(lo, 60), [b[lo:hi] for b in problem.banks]
        sums = (*problem.infonce(banks=banks, part=part), *problem.sigmoid(banks=banks, part=part))
        results = (*native_cuda.bank_nce(problem.anchors, banks, *args, part), *sums)
        assert flags() == Code.ANCHOR | Code.INDEX
        for result in results:
            assert torch.equal(result.isnan() if result.dim() == 2 else result.isnan().all(-1), bad)


@pytest.mark.parametrize("dim", [64, 60])
@pytest.mark.parametrize(("source", "replacement"), [("class", "no"), ("self", "yes"), ("weighted", "yes")])
def test_the_rows_scored_are_the_draws_of_the_reference(kernels, source, replacement, dim):
    """With the unit matrix for a bank, K times the gradient of the mean score counts each row."""
    problem = Problem(dim, 3, 20, dim, source, replacement)
    args = problem.anchors, [torch.eye(dim)] * 2, problem.index, problem.spec, True, "gather", "auto"
    times = (native_cuda.bank_mean_score(*args)[1] * 20).round().long()
    expected = torch.zeros(3, dim, dtype=torch.int64)
    expected.scatter_add_(1, draw(problem.index, dim, problem.spec), torch.ones(3, 20, dtype=torch.int64))
    assert torch.equal(times[0], expected) and torch.equal(times[1], expected)


@pytest.mark.parametrize("dim", [128, 20])
def test_results_do_not_depend_on_the_schedule(kernels, dim):
    results = []
    problem = Problem(1500, 2, 1100, dim, "self", directions=2)
    for seed in range(4):
        kernels.cuda_on_cpu_seed(c_uint64(seed))
        results.append((*problem.nce(), problem.estimate(), *problem.infonce(), *problem.sigmoid()))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dim", [128, 20])
def test_loss_does_not_depend_on_requires_grad(kernels, dim):
    problem = Problem(80, 2, 50, dim)
    loss, grad = problem.nce(needs_grad=False)
    assert grad.numel() == 0 and torch.equal(loss, problem.nce()[0])
    for score in (problem.infonce, problem.sigmoid):
        *values, rows = score(needs_grad=False)
        assert rows.numel() == 0 and all(map(torch.equal, values, score()[:-1]))


@pytest.mark.parametrize("wide", ["anchors", "one bank", "both"])
def test_fp64_on_either_side(kernels, wide):
    problem = Problem(50, 2, 30, 64, dtype=torch.float32)
    if wide != "one bank":
        problem.anchors = problem.anchors.double()
    if wide != "anchors":
        problem.banks[1] = problem.banks[1].double()
    loss, grad = problem.nce()
    assert loss.dtype == grad.dtype == torch.float64
    expected = reference.bank_nce(
        *problem.exact(), problem.log_z.double(), problem.spec, TEMPERATURE, True, "gather", "reference"
    )
    # One bank in fp64 leaves the other direction, and it alone, in fp32.
    assert_relative(loss[1:], expected[0][1:], 1e-12)
    close(grad[1:], expected[1][1:], 1e-12)
    assert_relative(loss, expected[0], 1e-6 if wide == "one bank" else 1e-12)
    for score in (problem.infonce, problem.sigmoid):
        sums, exact = score(), score(reference, *problem.exact())
        assert all(t.dtype == torch.float64 for t in sums)
        close_sums([t[1:] for t in sums], [t[1:] for t in exact], 1e-12, 1e-12)
        close_sums(sums, exact, 2e-6 if wide == "one bank" else 1e-12, 1e-5 if wide == "one bank" else 1e-12)


def test_banks_need_not_be_aligned_or_contiguous(kernels):
    problem = Problem(60, 2, 40, 128)
    plain, banks = problem.nce(), problem.banks
    storage = torch.full((2, 62, 200), torch.nan)  # no element outside the rows may be read
    for first, exact in ((36, True), (37, False)):  # 16-byte boundaries, or not: the other kernel
        storage.fill_(torch.nan)
        views = [s[1:-1, first : first + 128] for s in storage]
        for view, bank in zip(views, banks, strict=True):
            view.copy_(bank)
        problem.banks = views
        loss, grad = problem.nce()
        torch.testing.assert_close(loss, plain[0], rtol=0 if exact else 1e-6, atol=0)
        torch.testing.assert_close(grad, plain[1], rtol=0 if exact else 1e-5, atol=0 if exact else 1e-5)
    problem.banks = [view.T.contiguous().T for view in views]  # column-major
    assert torch.equal(problem.nce()[0], plain[0])  # copied


def test_rows_beyond_two_billion_elements(kernels):
    stride = 2**31 + 8
    storage = torch.from_numpy(np.zeros(stride + 128, np.float16))  # only the pages of its two rows are touched
    bank = storage.as_strided((2, 128), (stride, 1))
    problem = Problem(2, 2, 1, 128, "self", dtype=torch.float16, directions=1)
    bank.copy_(problem.banks[0])
    problem.banks, problem.index = [bank], torch.tensor([0, 1])  # each row drawn once, and each a positive
    problem.check(("nce",))
    problem.banks, problem.anchors = [bank[:, :5]], problem.anchors[..., :5]
    problem.check(("nce",))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_given_rows_are_read_in_place(kernels, dtype):
    problem = Problem(70, 3, 30, 128, "given")
    expected = problem.nce()
    wide = torch.full((3, 33), 10**6, dtype=dtype)  # other columns are not read
    wide[:, 1:31] = problem.spec.tables[0]
    problem.index = problem.index.to(dtype)
    for rows in (wide[:, 1:31], wide[:, 1:31].T.contiguous().T):
        problem.spec = given(rows)
        assert all(torch.equal(a, b) for a, b in zip(problem.nce(), expected, strict=True))
    assert flags() == 0


@pytest.mark.parametrize("dim", [128, 20])
def test_bad_anchors_give_nan_and_flags_and_leave_the_others_alone(kernels, dim):
    problem = Problem(60, 5, 600, dim, "self", "yes")  # two splits
    good = problem.nce()
    problem.anchors[0, 1, dim - 1], problem.anchors[1, 2, 0] = torch.inf, torch.nan
    problem.index[3], problem.index[4] = -1, 60
    loss, grad = problem.nce()
    assert flags() == Code.ANCHOR | Code.INDEX
    bad = torch.tensor([[False, True, False, True, True], [False, False, True, True, True]])
    assert torch.equal(loss.isnan(), bad) and torch.equal(grad.isnan(), bad[..., None].expand_as(grad))
    assert torch.equal(loss[~bad], good[0][~bad]) and torch.equal(grad[~bad], good[1][~bad])
    mean = native_cuda.bank_mean_score(
        problem.anchors, problem.banks, problem.index, problem.spec, True, "gather", "auto"
    )
    assert torch.equal(mean[0].isnan(), bad) and torch.equal(mean[1].isnan(), bad[..., None].expand_as(grad))
    assert problem.estimate().isnan().all()  # so that a frozen Z is never set from it
    for result in (*problem.infonce(), *problem.sigmoid()):
        assert torch.equal(result.isnan(), bad if result.dim() == 2 else bad[..., None].expand_as(result))


@pytest.mark.parametrize("dim", [128, 20])
@pytest.mark.parametrize("row", [-1, 60, 2**62, -(2**63)])
def test_a_bad_given_row_is_not_read(kernels, dim, row):
    problem = Problem(60, 2, 40, dim, "given")
    good = problem.nce()
    problem.spec.tables[0][1, 39] = row
    loss, grad = problem.nce()
    assert flags() == Code.INDEX
    assert loss[:, 1].isnan().all() and grad[:, 1].isnan().all()
    assert torch.equal(loss[:, 0], good[0][:, 0]) and torch.equal(grad[:, 0], good[1][:, 0])
    for result in (*problem.infonce(), *problem.sigmoid()):
        assert result[:, 1].isnan().all() and result[:, 0].isfinite().all()


def test_anchor_with_an_empty_pool_gives_nan_and_a_flag(kernels):
    for num_data, k, source in ((9, 10, "none"), (1, 1, "self")):
        problem = Problem(num_data, 2, 1, 128, "none")
        problem.spec = DrawSpec(source, k, "no", False, 0, problem.spec.tables)
        assert all(t.isnan().all() for t in problem.nce())
        assert flags() == Code.INDEX


def test_unset_log_z_gives_nan_and_extreme_temperatures_do_not(kernels):
    problem = Problem(60, 2, 40, 128)
    problem.log_z[1] = torch.nan
    loss, grad = problem.nce()
    assert loss[0].isfinite().all() and loss[1].isnan().all() and grad[1].isnan().all() and grad[0].isfinite().all()
    assert flags() == 0
    args = problem.exact(), problem.spec
    problem.log_z[:] = 3.0
    actual = native_cuda.bank_nce(*problem.exact(), problem.log_z, problem.spec, 1e-3, True, "gather", "auto")
    expected = reference.bank_nce(*args[0], problem.log_z.double(), args[1], 1e-3, True, "gather", "reference")
    assert_relative(actual[0], expected[0], 1e-12)  # the published form overflows below tau = 0.0113
    close(actual[1], expected[1], 1e-12)


@pytest.mark.parametrize("dim", [128, 20])
@pytest.mark.parametrize("rising", [True, False])
def test_infonce_follows_the_largest_score(kernels, dim, rising):
    """Each row's score is above, or below, all earlier ones, over several tiles and splits, by some 4,000 units."""
    problem = Problem(1500, 1, 1400, dim, "given", directions=1)
    rows = torch.arange(1400) if rising else torch.arange(1399, -1, -1)
    problem.spec, direction = given(rows[None]), problem.anchors[0, 0]
    problem.banks = [torch.linspace(-2, 2, 1500)[:, None] * direction + 0.01 * problem.banks[0]]
    problem.anchors = 75 * problem.anchors
    value, mean = problem.infonce()
    expected = problem.infonce(reference, *problem.exact())
    assert_relative(value, expected[0], 1e-6)
    close(mean, expected[1], 1e-3)  # an exponent of 2,000 is rounded to 1e-4
    problem.anchors = problem.anchors.double()
    close_sums(problem.infonce(), expected, 1e-12, 1e-10)


@pytest.mark.parametrize("dim", [128, 20])
@pytest.mark.parametrize("own", ["bank", "given"])
def test_critics_of_a_device_end_as_those_of_the_cpu(kernels, monkeypatch, dim, own):
    problem = Problem(60, 4, 600, dim, "self", "yes", directions=1)
    monkeypatch.setitem(op._MODULES, ("native", "gather", "cpu"), native_cuda)
    monkeypatch.setattr(op, "chosen", lambda name, *rest: Choice(name, "gather", "cpu", backend, ""))
    positive, results = torch.roll(problem.anchors, 1, 1) if own == "given" else None, []
    for backend in ("native", "reference"):
        args, spec = (problem.anchors, problem.banks, problem.index, positive), spec_args(problem.spec)
        infonce = critics.infonce(*args, *spec, TEMPERATURE, True, "gather", backend)
        results.append((*infonce, *critics.sigmoid(*args, SCALE, BIAS, *spec, True, "gather", backend)))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=2e-5)
    backend, problem.index = "native", torch.tensor([1, -1, 60, 2])
    args = problem.anchors, problem.banks, problem.index, positive, *spec
    for result in critics.infonce(*args, TEMPERATURE, True, "gather", "native"):
        if result.numel():
            assert result[:, 1:3].isnan().all() and result[:, ::3].isfinite().all()
    assert flags() == Code.INDEX


@pytest.mark.parametrize("dim", [128, 20])
def test_terms_smaller_than_machine_epsilon_are_kept(kernels, dim):
    problem = Problem(3, 1, 20_000, dim, "none", "yes", directions=1)
    problem.log_z[:] = 9.5  # each term is about 1e-8, their sum 1e-5 of the loss
    problem.check(("nce",))


def test_a_known_log_z_is_kept_and_costs_no_pass(kernels):
    problem = Problem(60, 2, 40, 128)
    estimate, known = problem.estimate(), torch.tensor([1.5, torch.nan])
    mixed = problem.estimate(known)
    assert mixed[0] == 1.5 and mixed[1] == estimate[1]
    known[1] = -2.0
    problem.anchors.fill_(torch.nan)  # not even looked at
    assert torch.equal(problem.estimate(known), torch.tensor([1.5, -2.0]))
    assert flags() == 0


def test_cuda_supports_only_the_gather_plan():
    with pytest.raises(NotImplementedError, match="plan='dense'"):
        native_cuda.bank_mean_score(torch.ones(1, 1, 1), [torch.ones(1, 1)], None, None, True, "dense", "auto")


def test_splits_cover_the_negatives_and_bound_the_scratch():
    for batch in (1, 2, 63, 64, 256, 1024, 5000):
        for negatives in (1, 255, 512, 513, 16384, 65536, 10**6):
            splits, chunk = native_cuda.split(batch, negatives)
            assert (splits - 1) * chunk < negatives <= splits * chunk
            assert splits == 1 or batch * splits < native_cuda.BLOCKS + batch
            assert native_cuda.scratch_bytes(2, batch, 128, negatives) <= 2 * (1024 + batch) * 129 * 4


def test_flagged_values_are_raised_after_the_call_in_check_mode(kernels, monkeypatch):
    monkeypatch.setenv("WCORD_FAST_CHECK", "1")
    problem = Problem(60, 3, 40, 20, "self", "yes")
    problem.nce()
    problem.index[2] = 60
    for call in (problem.nce, problem.estimate):
        with pytest.raises(ValueError, match="a row index was out of"):
            call()
        assert flags() == 0
