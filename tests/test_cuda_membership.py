"""The membership kernel, thread by thread on the CPU, and its plain PyTorch twin, against the draws themselves."""

from __future__ import annotations

import ctypes
import random

import pytest
import torch

from wcord_fast.ops import status
from wcord_fast.ops.bank import membership
from wcord_fast.ops.sampling import reference
from wcord_fast.ops.sampling.spec import ALL, DrawSpec
from wcord_fast.ops.status import Code

from . import draw_specs
from .cuda_bank_problem import flags
from .cuda_on_cpu import build
from .cuda_on_cpu.module import emulated

needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build.compile_library([build.CSRC / "cuda" / "membership.cu"], tmp_path_factory.mktemp("membership"))


@pytest.fixture(params=["reference", "kernel-1", "kernel-2"])
def functions(request, monkeypatch):
    """(draw_mask, draw_counts) in plain PyTorch, and by the kernel in two orders of its blocks and threads."""
    if request.param == "reference":
        yield membership.draw_mask, membership.draw_counts
        return
    if build.compiler() is None:
        pytest.skip("no C++ compiler")
    library = request.getfixturevalue("library")
    with emulated(library, int(request.param[-1])):
        yield membership.mask_native, membership.counts_native


def unpacked(mask: torch.Tensor, num_data: int) -> torch.Tensor:
    """bool [B, N] of a mask, by the definition of its layout: bit r & 31 of word r >> 5."""
    words = [[w % 2**32 for w in row] for row in mask.tolist()]
    assert all(row[-1] >> ((num_data - 1) % 32 + 1) == 0 for row in words)  # spare bits
    return torch.tensor([[bool(row[r >> 5] >> (r & 31) & 1) for r in range(num_data)] for row in words])


def counted(rows: torch.Tensor, num_data: int) -> torch.Tensor:
    return torch.stack([torch.bincount(row, minlength=num_data) for row in rows])


def check(functions, index, num_data, spec, rows, held=None):
    """Mask and counts of all rows, or of the rows held = (first, n) alone."""
    first, n = held or (0, num_data)
    expected = counted(rows, num_data)[:, first : first + n]
    mask, counts = (function(index, num_data, spec, held=held) for function in functions)
    assert mask.dtype == torch.int32 and mask.shape == (len(index), (n + 31) // 32)
    assert torch.equal(unpacked(mask, n), expected > 0)
    assert counts.dtype == (torch.int16 if spec.k <= 32767 else torch.int32)
    assert counts.shape == (len(index), n + n % 2) and not counts[:, n:].any()
    assert torch.equal(counts[:, :n].long(), expected)


def test_random_cases(functions):
    for case in draw_specs.cases(seed=8, count=25):
        check(functions, torch.tensor(case.index), case.num_data, case.spec(), case.expected())


@pytest.mark.parametrize(
    ("num_data", "batch", "k", "source", "replacement"),
    [
        (1, 1, 1, "none", "no"),
        (2100, 2, 2099, "self", "no"),  # K = P, over several splits
        (2100, 1, 1025, "class", "yes"),
        (3, 2, 5000, "none", "yes"),  # thousands per row
        (5, 1, 32767, "none", "yes"),  # the most that int16 counts
        (5, 1, 32768, "none", "yes"),
        (1, 1, 32767, "none", "yes"),
        (41_000, 2, 3, "self", "no"),  # int16 counts of an anchor in 80 KB
    ],
)
def test_sizes(functions, num_data, batch, k, source, replacement):
    case = draw_specs.Case(random.Random(k), num_data, batch, k, source, replacement)
    index, spec = torch.tensor(case.index), case.spec()
    check(functions, index, num_data, spec, reference.draw(index, num_data, spec))


@needs_compiler
@pytest.mark.parametrize("kilobytes", [99, 163])
def test_devices_with_less_shared_memory(library, kilobytes):
    """Words of either kind that fit in the largest block, but not in this device's, and some that just do."""
    library.cuda_on_cpu_shared_limit(ctypes.c_size_t(kilobytes << 10))
    try:
        with emulated(library):
            for num_data in (kilobytes * 256 - 500, kilobytes * 256 + 600, kilobytes * 512 + 1500):
                spec = DrawSpec("self", 1500, "no", False, 0, [torch.tensor([3, 4])])
                index = torch.tensor([7])
                rows = reference.draw(index, num_data, spec)
                check((membership.mask_native, membership.counts_native), index, num_data, spec, rows)
                wide = DrawSpec("none", 32768, "yes", False, 0, [torch.tensor([3, 4])])
                actual = membership.counts_native(index, num_data, wide)
                assert actual.dtype == torch.int32
                expected = counted(reference.draw(index, num_data, wide), num_data)
                assert torch.equal(actual[:, :num_data].long(), expected)
    finally:
        library.cuda_on_cpu_shared_limit(ctypes.c_size_t(0))


def test_words_that_do_not_fit_in_shared_memory(functions):
    num_data = 1_400_001  # 171 KB of mask
    index, spec = torch.tensor([7, 1_400_000]), DrawSpec("self", 1500, "no", False, 0, [torch.tensor([3, 4])])
    rows = reference.draw(index, num_data, spec)
    mask, counts = functions[0](index, num_data, spec), functions[1](index, num_data, spec)
    expected = torch.zeros(2, mask.shape[1], dtype=torch.int64)
    expected.scatter_add_(1, rows // 32, 1 << (rows % 32))  # without replacement: each bit once
    assert torch.equal(mask.long() % 2**32, expected)
    assert torch.equal(counts[:, :num_data].long(), counted(rows, num_data))


def test_parts_of_random_cases(functions):
    rng = random.Random(5)
    for case in draw_specs.cases(seed=9, count=25):
        first = rng.randrange(case.num_data)
        held = first, rng.randint(1, case.num_data - first)
        check(functions, torch.tensor(case.index), case.num_data, case.spec(), case.expected(), held)


@pytest.mark.parametrize("held", [(0, 1), (0, 33), (31, 2), (1099, 1001), (2099, 1)])
@pytest.mark.parametrize(("k", "replacement"), [(2099, "no"), (9000, "yes")])
def test_sizes_of_parts(functions, held, k, replacement):
    """K = P, and several splits."""
    case = draw_specs.Case(random.Random(k), 2100, 2, k, "self", replacement)
    index, spec = torch.tensor(case.index), case.spec()
    check(functions, index, 2100, spec, reference.draw(index, 2100, spec), held)


@pytest.mark.parametrize("k", [5000, 32768])
def test_a_part_of_a_row_that_is_drawn_thousands_of_times(functions, k):
    case = draw_specs.Case(random.Random(k), 3, 2, k, "none", "yes")
    index, spec = torch.tensor(case.index), case.spec()
    rows = reference.draw(index, 3, spec)
    for held in ((0, 1), (1, 1), (1, 2)):
        check(functions, index, 3, spec, rows, held)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_given_rows(functions, dtype):
    wide = torch.randint(0, 50, (3, 40), dtype=dtype)
    index = torch.tensor([0, 1, 2], dtype=dtype)
    for rows in (wide[:, 1:38], wide[:, 1:38].T.contiguous().T):
        check(functions, index, 50, DrawSpec("given", 37, "no", False, 0, [rows]), rows.long())
        check(functions, index, 50, DrawSpec("given", 37, "no", False, 0, [rows]), rows.long(), (13, 30))


@pytest.mark.parametrize("source", ["none", "self", "class"])
@pytest.mark.parametrize("expected", [False, True])
def test_whole_pools(functions, source, expected):
    case = draw_specs.Case(random.Random(2), 300, 3, 7, source, "no")
    index, tables = torch.tensor(case.index), case.spec().tables
    spec = DrawSpec(source, 7 if expected else ALL, "no", expected, 0, tables)
    inside = torch.ones(3, 300, dtype=torch.bool)
    for b, own in enumerate(case.index):
        for r in range(300):
            same = r == own if source == "self" else case.labels[r] == case.labels[own]
            inside[b, r] = source == "none" or not same
    assert torch.equal(unpacked(functions[0](index, 300, spec), 300), inside)
    for first, n in ((0, 1), (37, 65), (260, 40)):
        assert torch.equal(unpacked(functions[0](index, 300, spec, held=(first, n)), n), inside[:, first : first + n])
    with pytest.raises(NotImplementedError, match="nothing is drawn"):
        functions[1](index, 300, spec)


@pytest.fixture
def kernels(library):
    with emulated(library):
        yield


@needs_compiler
def test_bad_rows_are_skipped_and_flagged(kernels, monkeypatch):
    state = torch.tensor([1, 2])
    index, spec = torch.tensor([3, -1, 64, 0]), DrawSpec("self", 5, "no", False, 0, [state])
    mask = unpacked(membership.mask_native(index, 64, spec), 64)
    assert flags() == Code.INDEX and not mask[1:3].any() and (mask[[0, 3]].sum(1) == 5).all()
    monkeypatch.setattr(status, "_words", {})
    rows = torch.tensor([[1, -1, 64, 2**62, 1]])
    counts = membership.counts_native(index[:1], 64, DrawSpec("given", 5, "no", False, 0, [rows]))
    assert flags() == Code.INDEX and counts.sum() == 2 and counts[0, 1] == 2


@needs_compiler
def test_no_anchors(kernels):
    spec = DrawSpec("none", 5, "no", False, 0, [torch.tensor([1, 2])])
    assert membership.mask_native(torch.empty(0, dtype=torch.int64), 64, spec).shape == (0, 2)


@needs_compiler
def test_flagged_row_is_raised_after_the_call_in_check_mode(kernels, monkeypatch):
    monkeypatch.setenv("WCORD_FAST_CHECK", "1")
    monkeypatch.setattr(status, "_words", {})
    with pytest.raises(ValueError, match="a row index was out of"):
        membership.mask_native(torch.tensor([-1]), 64, DrawSpec("self", 5, "no", False, 0, [torch.tensor([1, 2])]))
