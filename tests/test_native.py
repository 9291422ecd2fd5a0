"""The native CPU code: the draws to the bit, the bank's writes against float64."""

from __future__ import annotations

import math
import random
import re

import pytest
import torch

from wcord_fast.ops import native_module
from wcord_fast.ops.bank import native as bank_native
from wcord_fast.ops.bank import reference as bank_reference
from wcord_fast.ops.sampling import native, reference
from wcord_fast.ops.sampling.spec import DrawSpec

from . import draw_specs, philox_python
from .philox_python import GOLDEN_ANCHOR, GOLDEN_PERMUTATION, GOLDEN_REPLACED_50000, GOLDEN_SEED, GOLDEN_STEP

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

pytestmark = pytest.mark.skipif(
    native_module.load() is None, reason=f"no native module: {native_module.unavailable_reason('cpu')}"
)


def permute(values, size, *, seed=GOLDEN_SEED, step=GOLDEN_STEP, anchor=GOLDEN_ANCHOR, inverse=False):
    values = torch.as_tensor(values, dtype=torch.int64).contiguous()
    out = torch.full_like(values, -1)
    native_module.module().permute(
        seed=seed,
        step=step,
        anchor=anchor,
        size=size,
        rows=values.data_ptr(),
        out=out.data_ptr(),
        n=values.numel(),
        inverse=inverse,
    )
    return out


def state_spec(source, k, replacement, seed=GOLDEN_SEED, step=GOLDEN_STEP, anchor_offset=0):
    return DrawSpec(source, k, replacement, False, anchor_offset, [torch.tensor([seed, step])])


def test_philox_known_answers():
    philox = native_module.module().philox  # Random123's own test vectors
    assert philox(0, 0, 0, 0, 0, 0) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    ones = 0xFFFFFFFF
    assert philox(ones, ones, ones, ones, ones, ones) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    digits_of_pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0)
    assert philox(*digits_of_pi) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


def test_golden_values(simd):
    for size, values in GOLDEN_PERMUTATION.items():
        assert permute(range(len(values)), size).tolist() == values
        spec = state_spec("none", len(values), "no", anchor_offset=GOLDEN_ANCHOR)
        assert native.draw(torch.tensor([0]), size, spec).tolist() == [values]
    spec = state_spec("none", 6, "yes", anchor_offset=GOLDEN_ANCHOR)
    assert native.draw(torch.tensor([0]), 50_000, spec).tolist() == [GOLDEN_REPLACED_50000]


def test_draws_equal_plain_python(simd):
    for case in draw_specs.cases(seed=1, count=150):
        drawn = native.draw(torch.tensor(case.index), case.num_data, case.spec())
        assert drawn.dtype == torch.int64
        assert torch.equal(drawn, case.expected()), vars(case)


@pytest.mark.parametrize("source", ["none", "self", "class", "weighted"])
@pytest.mark.parametrize("replacement", ["no", "yes", "auto"])
def test_draws_equal_reference_at_size(simd, source, replacement):
    if source == "weighted" and replacement != "yes":
        pytest.skip("weights mean replacement")
    for num_data, k in ((50_000, 4099), (33_000, 16_500), (300, 20_000 if replacement != "no" else 150)):
        case = draw_specs.Case(random.Random(num_data), num_data, 5, k, source, replacement)
        index, spec = torch.tensor(case.index), case.spec()
        assert torch.equal(native.draw(index, num_data, spec), reference.draw(index, num_data, spec))


def test_many_seeds_and_steps(simd):
    rng = random.Random(3)
    for _ in range(200):
        seed, step = draw_specs.signed64(rng.getrandbits(64)), rng.getrandbits(62)
        size, anchor = rng.choice((2, 9, 500, 40_000, 2**31 - 1, 2**31)), rng.getrandbits(30)
        k = min(size, 20)
        spec = state_spec("none", k, "no", seed, step, anchor)
        expected = philox_python.permutation(seed, step, anchor, size, k)
        assert native.draw(torch.tensor([0]), size, spec).tolist() == [expected]


def test_permutation_is_a_bijection():
    for size in range(1, 601):
        values = permute(range(size), size, seed=size, anchor=size % 5)
        assert torch.equal(values.sort().values, torch.arange(size)), size
        back = permute(values, size, seed=size, anchor=size % 5, inverse=True)
        assert torch.equal(back, torch.arange(size)), size


@pytest.mark.parametrize("size", [2**16 - 1, 2**16, 2**16 + 1, 99_991, 2**20 + 1])
def test_permutation_is_a_bijection_for_large_sizes(simd, size):
    rows = native.draw(torch.tensor([0]), size, state_spec("none", size, "no"))[0]
    assert torch.equal(rows.sort().values, torch.arange(size))
    assert torch.equal(permute(rows, size, anchor=0, inverse=True), torch.arange(size))


@pytest.mark.parametrize("size", [2**24 + 1, 2**31 - 1, 2**31, 2**30 + 1])
def test_inverse_of_huge_sizes(size):
    values = torch.cat((torch.arange(2000), size - 1 - torch.arange(2000)))
    there = permute(values, size)
    assert there.min() >= 0 and there.max() < size and there.unique().numel() == values.numel()
    assert torch.equal(permute(there, size, inverse=True), values)


@pytest.mark.parametrize("source", ["none", "self", "class"])
def test_position_inverts_the_pool_map(source):
    case = draw_specs.Case(random.Random(5), 300, 4, 1, source, "no")
    index, spec, rows = torch.tensor(case.index), case.spec(), torch.arange(300)
    sizes = reference.pool_size(index, 300, spec)
    for b in range(4):
        position = torch.full_like(rows, -2)
        module = native_module.module()
        draw = module.Draw(**native.draw_fields(index, 300, spec), out=0)
        assert module.cpu_positions(
            draw=draw, anchor=b, rows=rows.data_ptr(), positions=position.data_ptr(), n=rows.numel()
        )
        inside = position >= 0
        assert (position[~inside] == -1).all()
        assert torch.equal(position[inside].sort().values, torch.arange(int(sizes[b])))
        back = reference.pool_row(position[inside][None], index[b : b + 1], spec)[0]
        assert torch.equal(back, rows[inside])


def test_anchor_offset_splits_a_batch():
    case = draw_specs.Case(random.Random(6), 500, 5, 40, "class", "no")
    index, whole = torch.tensor(case.index), case.spec()
    drawn = native.draw(index, 500, whole)
    last = DrawSpec("class", 40, "no", False, whole.anchor_offset + 2, whole.tables)
    assert torch.equal(drawn[2:], native.draw(index[2:], 500, last))


def test_index_dtypes_and_strides():
    case = draw_specs.Case(random.Random(7), 100, 5, 10, "self", "no")
    index, spec = torch.tensor(case.index), case.spec()
    drawn = native.draw(index, 100, spec)
    assert torch.equal(drawn, native.draw(index.int(), 100, spec))
    assert torch.equal(drawn, native.draw(torch.stack((index, index), 1)[:, 0], 100, spec))


@pytest.mark.parametrize(
    ("index", "num_data", "k", "source"),
    [([0, -1], 9, 3, "none"), ([0, 9], 9, 3, "none"), ([1, 0, 0], 1, 1, "self"), ([0, 4], 9, 10, "none")],
)
def test_anchor_with_an_empty_pool_is_named(index, num_data, k, source):
    first = 1 if k < num_data and num_data > 1 else 0
    with pytest.raises(ValueError, match=rf"index\[{first}\] = {index[first]} with N = {num_data}"):
        native.draw(torch.tensor(index), num_data, state_spec(source, k, "no"))


def test_draws_do_not_depend_on_threads(threads):
    case = draw_specs.Case(random.Random(8), 60_000, 3, 40_001, "class", "yes")
    index, spec = torch.tensor(case.index), case.spec()
    threads(1)
    one = native.draw(index, 60_000, spec)
    threads(3)
    assert torch.equal(one, native.draw(index, 60_000, spec))


def updated(bank, index, rows, momentum):
    """The update in float64, anchor by anchor, from the bank before the step."""
    before, out = bank.double(), bank.double().clone()
    for b, row in enumerate(index.tolist()):
        mixed = momentum * before[row] + (1 - momentum) * rows[b].double()
        out[row] = mixed / mixed.norm().clamp_min(1e-12)
    return out


@pytest.mark.parametrize("rows_dtype", DTYPES)
@pytest.mark.parametrize("bank_dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 5, 128, 131])
def test_update_against_float64(bank_dtype, rows_dtype, dim):
    generator = torch.Generator().manual_seed(dim)
    bank = torch.randn(40, dim, generator=generator).to(bank_dtype)
    rows = torch.randn(25, dim, generator=generator).to(rows_dtype)
    index = torch.randint(0, 30, (25,), generator=generator)
    assert index.unique().numel() < 25
    expected, before = updated(bank, index, rows, 0.3), bank.clone()
    bank_native.bank_update_(bank, index, rows, 0.3)
    tolerance = {torch.float64: 1e-14, torch.float32: 2e-7}.get(bank_dtype, torch.finfo(bank_dtype).eps / 2 * 1.01)
    if rows_dtype == torch.float64 and bank_dtype != torch.float64:
        tolerance = max(tolerance, 4e-7)
    assert (bank.double() - expected).abs().max() <= tolerance
    untouched = torch.ones(40, dtype=torch.bool)
    untouched[index] = False
    assert torch.equal(bank[untouched], before[untouched])


def test_update_lets_the_last_duplicate_win_for_any_number_of_threads(threads):
    rows = torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
    index = torch.arange(400) % 7
    banks = []
    for count in (1, 2, 3):
        threads(count)
        bank = torch.zeros(7, 16)
        bank_native.bank_update_(bank, index.int(), rows, 0.0)
        banks.append(bank)
    last = torch.stack([rows[index == r][-1] for r in range(7)])
    torch.testing.assert_close(banks[0], last / last.norm(dim=1, keepdim=True))
    assert torch.equal(banks[0], banks[1]) and torch.equal(banks[0], banks[2])


def test_update_edges():
    bank = torch.eye(3)
    bank_native.bank_update_(bank, torch.tensor([1]), torch.zeros(1, 3), 0.0)  # the norm is clamped, not divided by
    assert torch.equal(bank[1], torch.zeros(3))
    bank_native.bank_update_(bank, torch.tensor([0, 2]), torch.full((2, 3), 1e30), 0.5)  # squares beyond fp32
    torch.testing.assert_close(bank[[0, 2]], torch.full((2, 3), 3**-0.5))
    bank_native.bank_update_(bank, torch.empty(0, dtype=torch.int64), torch.empty(0, 3), 0.5)
    shared = torch.eye(4)
    bank_native.bank_update_(shared, torch.tensor([3, 2]), shared[:2], 0.0)  # rows are read before any is written
    assert torch.equal(shared, torch.eye(4)[[0, 1, 1, 0]])


def test_update_by_rows_and_an_index_that_live_in_the_bank():
    """All are read before one is written, in every storage. An index changed after its check would write anywhere."""
    values = torch.eye(6).numpy()
    bank, rows = torch.from_numpy(values), torch.from_numpy(values[2:5])  # two storages, one memory
    bank_native.bank_update_(bank, torch.tensor([3, 4, 5]), rows, 0.0)
    assert torch.equal(bank, torch.eye(6)[[0, 1, 2, 2, 3, 4]])

    bank = torch.zeros(40, 8, dtype=torch.float64)
    index = bank.view(torch.int64)[0, :4]
    index.copy_(torch.tensor([0, 3, 1, 2]))
    bank_native.bank_update_(bank, index, torch.eye(8)[:4], 0.0)
    assert torch.equal(bank[:4], torch.eye(8, dtype=torch.float64)[[0, 2, 3, 1]])


@pytest.mark.parametrize("bad", [-1, 4, 2**62, -(2**63)])
@pytest.mark.parametrize("at", [0, 1, 6])
def test_an_update_out_of_range_writes_nothing(bad, at):
    bank, rows = torch.randn(4, 8), torch.ones(7, 8)
    index = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    index[at] = bad
    before, version = bank.clone(), bank._version
    with pytest.raises(ValueError, match=re.escape(f"index[{at}]: expected a row in [0, 4), got {bad}")):
        bank_native.bank_update_(bank, index, rows, 0.5)
    assert torch.equal(bank, before) and bank._version == version


@pytest.mark.parametrize("at", [0, 1, 6])
def test_an_update_that_is_not_finite_writes_nothing(at):
    """A row, a bank's row, or a norm that is not finite; also where a later row overwrites the bad one (at = 0)."""
    index = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    for where, value in (("rows", math.nan), ("rows", -math.inf), ("rows", 3e38), ("bank", math.nan)):
        bank, rows = torch.randn(4, 8), torch.ones(7, 8)
        (rows[at] if where == "rows" else bank[index[at]])[:] = value
        before = bank.clone()
        with pytest.raises(ValueError, match="rows: row"):
            bank_native.bank_update_(bank, index, rows, 0.5)
        assert torch.equal(bank.nan_to_num(7), before.nan_to_num(7))


@pytest.mark.parametrize("dtype", DTYPES)
def test_initial_rows(dtype, threads):
    seed, bank_id, first = -12345, 1, 2**20 - 2
    rows = torch.full((5, 10), torch.nan, dtype=dtype)
    bank_native.bank_init_(rows, seed, bank_id, first)
    scale = torch.tensor(1 / (10 / 3) ** 0.5, dtype=torch.float32)
    for r in range(5):
        for d in range(10):
            q = philox_python.philox(
                (d >> 2, first + r, bank_id, 2**32 - 1), (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
            )
            value = scale * (2 * torch.tensor((q[d & 3] >> 8) * 2.0**-24, dtype=torch.float32) - 1)
            assert rows[r, d] == value.to(dtype)
    again = torch.empty(5, 10, dtype=dtype)
    bank_reference.bank_init_(again, seed, bank_id, first)
    assert torch.equal(rows, again)
    shard = torch.empty(2, 10, dtype=dtype)
    threads(2)
    bank_native.bank_init_(shard, seed, bank_id, first + 3)
    assert torch.equal(shard, rows[3:])


def test_half_types_round_like_torch():
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float16, torch.bfloat16):
        values = bits.view(dtype)
        values = values[values.isfinite()]
        wide = torch.ones(values.numel(), 2)
        wide[:, 0] = values.float()
        narrow = torch.stack((values, torch.ones_like(values)), 1)
        bank = torch.zeros(values.numel(), 2)
        bank_native.bank_update_(bank, torch.arange(values.numel()), narrow, 0.0)
        expected = torch.zeros(values.numel(), 2)
        bank_native.bank_update_(expected, torch.arange(values.numel()), wide, 0.0)
        assert torch.equal(bank, expected)  # reading
        ratio = torch.rand(100_000, 2, generator=generator) * torch.logspace(-9, 0, 100_000)[:, None]
        ratio[:, 1] = 1
        narrow_bank, wide_bank = torch.zeros(100_000, 2, dtype=dtype), torch.zeros(100_000, 2)
        bank_native.bank_update_(narrow_bank, torch.arange(100_000), ratio, 0.0)
        bank_native.bank_update_(wide_bank, torch.arange(100_000), ratio, 0.0)
        assert torch.equal(narrow_bank, wide_bank.to(dtype))  # writing, subnormals included


@pytest.mark.gpu
@pytest.mark.skipif(
    native_module.unavailable_reason("cuda") is not None, reason=str(native_module.unavailable_reason("cuda"))
)
class TestCuda:
    """The draws and updates of this file on a CUDA device."""

    def test_draws(self):
        for case in draw_specs.cases(seed=2, count=60):
            spec = case.spec()
            there = DrawSpec(
                spec.source,
                spec.k,
                spec.replacement,
                False,
                spec.anchor_offset,
                [t.cuda() for t in spec.tables],
            )
            index = torch.tensor(case.index)
            drawn = native.draw(index.cuda(), case.num_data, there)
            assert torch.equal(drawn.cpu(), native.draw(index, case.num_data, spec))

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_bank_writes(self, dtype):
        here, there = torch.empty(50, 130, dtype=dtype), torch.empty(50, 130, dtype=dtype, device="cuda")
        for bank in (here, there):
            bank_native.bank_init_(bank, 5, 1, 3)
        assert torch.equal(here, there.cpu())
        index, rows = torch.arange(70) % 31, torch.randn(70, 130)
        bank_native.bank_update_(here, index, rows, 0.5)
        bank_native.bank_update_(there, index.cuda(), rows.cuda(), 0.5)
        torch.testing.assert_close(here, there.cpu())

    def test_bad_values_set_the_status_word_and_write_nothing(self):
        from wcord_fast.ops import status

        device = torch.device("cuda", torch.cuda.current_device())
        bank = torch.randn(4, 8, device=device)
        before, rows = bank.clone(), torch.ones(2, 8, device=device)
        rows[1, 3] = torch.nan
        bank_native.bank_update_(bank, torch.tensor([4, 1], device=device), rows, 0.5)
        assert torch.equal(bank, before)
        with pytest.raises(ValueError, match="NaN or inf"):
            status.check(device)
