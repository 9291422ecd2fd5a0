"""The draw, update and initial-value kernels, thread by thread on the CPU, and the emulation itself (cuda_on_cpu/)."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from ctypes import c_uint64, c_void_p

import numpy as np
import pytest
import torch

from wcord_fast.ops import native_module
from wcord_fast.ops.bank import reference as bank_reference
from wcord_fast.ops.sampling import native, reference
from wcord_fast.ops.sampling.spec import DrawSpec
from wcord_fast.ops.status import Code

from . import draw_specs
from .cuda_on_cpu import build
from .cuda_on_cpu.module import check_size

KERNELS = [build.HERE / "selftest.cu", *(build.CSRC / "cuda" / name for name in ("bank_update.cu", "draws.cu"))]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
NATIVE = native_module.load()

pytestmark = [
    pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler"),
    pytest.mark.skipif(NATIVE is None, reason="no native module, whose records the kernels take"),
]


@pytest.fixture(scope="module")
def lib(tmp_path_factory):
    return build.compile_library(KERNELS, tmp_path_factory.mktemp("cuda_on_cpu"))


@pytest.fixture(params=[1, 2])
def kernels(lib, request):
    """The library, with the order of blocks, warps and lanes shuffled from a seed."""
    lib.cuda_on_cpu_seed(c_uint64(request.param))
    return lib


def address(array: np.ndarray | torch.Tensor) -> c_void_p:
    return c_void_p(array.data_ptr() if isinstance(array, torch.Tensor) else array.ctypes.data)


# ---- the emulation itself


def test_block_barrier_and_shared_memory(kernels):
    x, out = np.random.default_rng(0).random((7, 256), dtype=np.float32), np.full(7, np.nan, np.float32)
    assert kernels.selftest_block_sum(address(x), address(out), 7, 256) == 0
    np.testing.assert_allclose(out, x.sum(1), rtol=1e-5)


def test_warp_operations(kernels):
    n = 96
    out = np.full((8, n), -1, np.int32)
    assert kernels.selftest_warp_operations(address(out), n) == 0
    t, lane, warp = np.arange(n), np.arange(n) % 32, np.arange(n) // 32
    expected = [
        warp * 32 + 5,
        t ^ 3,
        np.where(lane < 28, t + 4, t),
        np.where(lane >= 4, t - 4, t),
        np.full(n, sum(1 << i for i in range(0, 32, 3))),
        warp == 1,
        warp != 1,
        np.array([range(32 * w, 32 * w + 32) for w in range(3)]).sum(1)[warp],
    ]
    assert np.array_equal(out, np.array(expected))


def test_block_vote(kernels):
    x, out = np.zeros((3, 5, 96), np.int32), np.full((3, 5, 96), -1, np.int32)
    for block, step, thread in ((0, 1, 40), (0, 2, 95), (2, 4, 0)):
        x[block, step, thread] = 8
    assert kernels.selftest_block_vote(address(x), address(out), 5, 3, 96) == 0
    assert np.array_equal(out != 0, np.broadcast_to(x.any(2, keepdims=True), x.shape))


def test_cooperative_grid(kernels):
    value, state = np.arange(6, dtype=np.int32), np.zeros(1, np.uint32)
    assert kernels.selftest_grid(address(value), address(state), 5, 6, 64) == 0
    expected = np.arange(6)
    for _ in range(5):
        expected = expected.sum() % 1000 + np.arange(6)
    assert np.array_equal(value, expected)


def test_shared_memory_is_poisoned_and_blocks_run_in_any_order(lib):
    out = np.zeros(64, np.float32)
    lib.selftest_unwritten_shared(address(out), 64)
    assert np.isnan(out).all()
    orders = []
    for _ in range(2):
        order, count = np.full(30, -1, np.int32), np.zeros(1, np.int32)
        lib.selftest_block_order(address(order), address(count), 30)
        assert sorted(order) == list(range(30))
        orders.append(order.tolist())
    assert orders[0] != orders[1] and list(range(30)) not in orders


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (
            "divergent_block_barrier",
            r"divergent_block_barrier_kernel.*: divergent barrier: block \(0,0,0\) thread",
        ),
        (
            "return_before_barrier",
            r"return_before_barrier_kernel.*: deadlock: .* thread \(33,0,0\) has returned",
        ),
        (
            "divergent_warp",
            r"divergent_warp_kernel.*: divergent barrier: .*__syncthreads \(.*selftest.cu:\d+\)",
        ),
        ("partial_warp", r"warp_operations_kernel.*: __shfl_sync in a warp of fewer than 32 threads"),
        ("half_mask", r"half_mask_kernel.*: __shfl_sync with a mask that is not full"),
        (
            "grid_return",
            r"group_barrier_kernel.*: deadlock: .* waits at group_sync .* block \(1,0,0\) .* has returned",
        ),
        ("shared_state", r"group_barrier_kernel.*: two groups of blocks at one state: .*group_sync"),
        ("grid_not_cooperative", r"group_barrier_kernel.*: group_sync in a launch that is not cooperative"),
        ("shared_overflow", r"shared_overflow_kernel.*: wrote at byte 124 of 124 bytes of shared memory"),
    ],
)
def test_mistakes_abort_with_kernel_and_thread(lib, mistake, message):
    code = "import ctypes, sys; getattr(ctypes.CDLL(sys.argv[1]), sys.argv[2])((ctypes.c_int * 512)())"
    done = subprocess.run(
        [sys.executable, "-c", code, lib._name, f"selftest_{mistake}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == -6, done
    assert re.search(message, done.stderr), done.stderr


def test_impossible_launches_are_refused(lib):
    assert lib.selftest_too_many_threads(None) == 9
    assert lib.selftest_too_much_shared(None) == 1


# ---- the kernels


def flagged(place: dict, status: torch.Tensor) -> dict:
    """The fields of a record for a launch whose kernel flags bad values in `status`."""
    return {**place, "status": status.data_ptr(), **native_module._STATUS_BITS}


def call(lib, name: str, record) -> int:
    check_size(lib, record)
    return getattr(lib, f"wcf_cuda_{name}")(c_void_p(record.address))


def cuda_draw(lib, index, num_data, spec, device=0):
    """(error code, int64 [B, K], status) of the draw kernel."""
    out = torch.full((index.shape[0], spec.k), -7)
    status = torch.zeros(1, dtype=torch.int32)
    fields = native.draw_fields(index, num_data, spec)
    record = NATIVE.Draw(**fields, out=out.data_ptr(), **flagged({"device": device}, status))
    return call(lib, "draw", record), out, int(status)


def test_draw_kernel_equals_plain_python(kernels):
    for case in draw_specs.cases(seed=4, count=40):
        spec = case.spec()
        code, out, status = cuda_draw(kernels, torch.tensor(case.index), case.num_data, spec)
        assert (code, status) == (0, 0)
        assert torch.equal(out, case.expected()), vars(case)


def test_draw_kernel_over_several_chunks(kernels):
    for source, replacement in (("class", "no"), ("self", "yes"), ("none", "auto")):
        case = draw_specs.Case(random.Random(1), 12_000, 2, 5001, source, replacement)
        index, spec = torch.tensor(case.index, dtype=torch.int32), case.spec()
        code, out, status = cuda_draw(kernels, index, 12_000, spec)
        assert (code, status) == (0, 0)
        assert torch.equal(out, reference.draw(index, 12_000, spec))


def test_draw_kernel_skips_hostile_indices(kernels):
    state = torch.tensor([1, 2])
    spec = DrawSpec("self", 5, "no", False, 0, [state])
    index = torch.tensor([3, -1, 10, 2**62, 0])
    code, out, status = cuda_draw(kernels, index, 10, spec)
    assert (code, status) == (0, Code.INDEX)
    assert (out[1:4] == -1).all()
    good = reference.draw(torch.tensor([3, 0, 0, 0, 0]), 10, spec)
    assert torch.equal(out[[0, 4]], good[[0, 4]])
    code, out, status = cuda_draw(kernels, index[:1], 5, DrawSpec("none", 6, "no", False, 0, [state]))
    assert (code, status) == (0, Code.INDEX) and (out == -1).all()  # more draws than rows


def cuda_update(lib, bank, index, rows, momentum, device=0):
    """(error code, status) of the update kernel, which writes `bank`."""
    status = torch.zeros(1, dtype=torch.int32)
    record = NATIVE.BankUpdate(
        bank=bank.data_ptr(),
        bank_dtype=native_module.dtype_code(bank.dtype),
        num_data=bank.shape[0],
        dim=bank.shape[1],
        index=index.data_ptr(),
        index_bytes=index.element_size(),
        batch=index.shape[0],
        rows=rows.data_ptr(),
        rows_dtype=native_module.dtype_code(rows.dtype),
        momentum=momentum,
        min_norm=bank_reference.MIN_NORM,
        **flagged({"device": device}, status),
    )
    return call(lib, "bank_update", record), int(status)


def init(lib, rows, dtype, seed, bank_id, first_row):
    n, dim = rows.shape
    sizes = {"num_rows": n, "dim": dim, "seed": seed % 2**64, "bank_id": bank_id, "first_row": first_row}
    return call(lib, "bank_init", NATIVE.BankInit(out=rows.data_ptr(), dtype=dtype, **sizes))


def probe(lib, out, value, device=0):
    return call(lib, "probe", NATIVE.Probe(out=out.ctypes.data, value=value, device=device))


@pytest.mark.parametrize("rows_dtype", DTYPES)
@pytest.mark.parametrize("bank_dtype", DTYPES)
@pytest.mark.parametrize(("num_data", "batch", "dim"), [(1, 1, 1), (1, 9, 33), (20, 37, 70), (50, 5, 128)])
def test_update_kernel(kernels, bank_dtype, rows_dtype, num_data, batch, dim):
    generator = torch.Generator().manual_seed(dim)
    # Two rows more than the kernel may touch, poisoned.
    storage = torch.full((num_data + 2, dim), torch.nan, dtype=bank_dtype)
    bank = storage[1:-1]
    bank.copy_(torch.randn(num_data, dim, generator=generator))
    rows = torch.randn(batch, dim, generator=generator).to(rows_dtype)
    index = torch.randint(0, num_data, (batch,), generator=generator)
    expected, before = bank.double(), bank.double()
    for b, row in enumerate(index.tolist()):
        mixed = 0.5 * before[row] + 0.5 * rows[b].double()
        expected[row] = mixed / mixed.norm().clamp_min(1e-12)
    assert cuda_update(kernels, bank, index.to(torch.int32 if dim == 70 else torch.int64), rows, 0.5) == (
        0,
        0,
    )
    half_ulp = torch.finfo(bank_dtype).eps / 2
    tolerance = half_ulp * (1.02 if half_ulp > 1e-4 else 4)
    if bank_dtype != torch.float64 and rows_dtype == torch.float64:
        tolerance = max(tolerance, 4e-7 if dim > 1 else tolerance)
    assert (bank.double() - expected).abs().max() <= tolerance
    assert storage[0].isnan().all() and storage[-1].isnan().all()


def test_update_kernel_keeps_bad_rows_out(kernels):
    storage = torch.randn(8, 40, generator=torch.Generator().manual_seed(0))
    bank, before = storage[2:6], storage.clone()
    rows = torch.ones(6, 40)
    rows[1, 39], rows[2, 0] = torch.nan, torch.inf
    index = torch.tensor([-1, 0, 1, 4, 2**62, 3])
    assert cuda_update(kernels, bank, index, rows, 0.5) == (0, Code.INDEX | Code.UPDATE_ROW)
    assert torch.equal(storage[:5], before[:5]) and torch.equal(storage[6:], before[6:])
    mixed = (before[5] + 1) / 2
    torch.testing.assert_close(bank[3], mixed / mixed.norm())
    # The last anchor with an index decides, also when its row is bad: an earlier good one does not slip through.
    before = storage.clone()
    assert cuda_update(kernels, bank, torch.tensor([2, 2]), rows[:2], 0.5) == (0, Code.UPDATE_ROW)
    assert torch.equal(storage, before)


def test_update_kernel_with_rows_that_are_bad_in_fp64_only(kernels):
    bank, rows = torch.eye(2, dtype=torch.float64), torch.tensor([[torch.inf, 0.0]], dtype=torch.float64)
    assert cuda_update(kernels, bank, torch.tensor([1]), rows, 0.5) == (0, Code.UPDATE_ROW)
    assert torch.equal(bank, torch.eye(2, dtype=torch.float64))


def test_update_kernel_with_rows_whose_norm_is_not_finite(kernels):
    """Every number is finite in fp32, the norm is not; or the bank's own row is bad."""
    bank = torch.eye(3, 40)
    bank[2, 7] = torch.nan
    before = bank.clone()
    rows = torch.full((2, 40), 3e38)
    assert cuda_update(kernels, bank, torch.tensor([0, 1]), rows, 0.0) == (0, Code.UPDATE_ROW)
    assert cuda_update(kernels, bank, torch.tensor([2]), torch.ones(1, 40), 0.5) == (0, Code.UPDATE_ROW)
    assert torch.equal(bank.nan_to_num(9), before.nan_to_num(9))
    assert cuda_update(kernels, bank, torch.tensor([0]), 0.01 * rows[:1], 0.0) == (0, 0)
    torch.testing.assert_close(bank[0], torch.full((40,), 40**-0.5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "dim"), [(1, 1), (3, 5), (70, 18)])
def test_init_kernel(kernels, dtype, n, dim):
    rows, expected = torch.full((n, dim), torch.nan, dtype=dtype), torch.empty(n, dim, dtype=dtype)
    bank_reference.bank_init_(expected, -7, 1, 1000)
    code = init(kernels, rows, native_module.dtype_code(dtype), -7, 1, 1000)
    assert code == 0
    assert torch.equal(rows, expected)


def test_probe_kernel(kernels):
    out = np.zeros(2, np.int32)
    assert probe(kernels, out, 77) == 0
    assert out.tolist() == [77, 0]


def test_launchers_restore_the_device_and_report_errors(lib):
    out = np.zeros(1, np.int32)
    assert probe(lib, out, 3, device=1) == 0
    assert lib.cuda_on_cpu_device() == 0 and out[0] == 3
    assert probe(lib, out, 4, device=2) == 101  # no such device
    assert lib.cuda_on_cpu_device() == 0 and out[0] == 3
    bank = torch.eye(2)
    code = init(lib, bank, 9, 0, 0, 0)
    assert code == 1 and torch.equal(bank, torch.eye(2))  # no such dtype


def test_a_module_older_than_its_records_is_refused(lib):
    class BankInit:  # as if a field had been added since
        pass

    with pytest.raises(RuntimeError, match=r"BankInit has .* build it again"):
        check_size(lib, BankInit())
