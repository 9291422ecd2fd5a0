"""The bank functions and modules where the world around them is unusual: default devices and dtypes, forks, views."""

from __future__ import annotations

import math
import sys

import pytest
import torch

import wcord_fast
from wcord_fast import CRDLoss, MemoryBank, NegativeSampler, WCoRDLoss
from wcord_fast import functional as F
from wcord_fast.nn import FeatureQueue
from wcord_fast.ops import native_module

from .rank_pool import alone, run_code

N, B, D, K = 50, 4, 7, 10
LABELS = [i % 3 for i in range(N)]
INDEX = torch.tensor([0, 3, 3, 49])
needs_native = pytest.mark.skipif(native_module.load() is None, reason="no native module")


@pytest.fixture
def default_device():
    yield torch.set_default_device
    torch.set_default_device(None)


def scores(sampler: NegativeSampler) -> list[torch.Tensor]:
    g = torch.Generator(device="cpu").manual_seed(0)
    x, bank = (torch.randn(n, D, generator=g, device="cpu") for n in (B, N))
    results = []
    for plan in ("gather", "dense"):
        results.append(F.bank_nce(x, bank, INDEX, negatives=sampler, log_z=2.0, plan=plan))
        results.append(F.bank_mean_score(x, bank, INDEX, negatives=sampler, plan=plan))
        results.append(F.bank_log_z(x, bank, INDEX, negatives=sampler, plan=plan))
    return [*results, F.bank_update_(bank, INDEX, x)]


def test_a_default_device_changes_no_result(default_device):
    expected = scores(NegativeSampler(N, K, labels=LABELS, seed=1))
    sampler = NegativeSampler(N, K, labels=LABELS, seed=1)
    default_device("meta")
    assert all(torch.equal(a, b) for a, b in zip(scores(sampler), expected, strict=True))


@pytest.mark.parametrize("options", [{"labels": LABELS}, {"weights": [float(i) for i in range(N)]}, {"seed": None}])
def test_a_sampler_made_on_meta_gets_its_tables_with_its_device(options):
    """Tables of arbitrary values, as `to_empty` leaves them, would be read as rows."""
    expected = NegativeSampler(N, K, **({"seed": 1} | options))
    with torch.device("meta"):
        sampler = NegativeSampler(N, K, **({"seed": 1} | options))
    assert sampler.state.device.type == "meta"
    for made in (sampler, NegativeSampler(N, K, **({"seed": 1} | options)).to("meta")):
        made.to_empty(device="cpu").load_state_dict(expected.state_dict())
        assert torch.equal(made.draw(INDEX), expected.draw(INDEX))


def test_loss_made_on_meta_equals_the_original_after_loading():
    def make() -> CRDLoss:
        return CRDLoss(8, 9, N, feat_dim=D, nce_k=K, labels=LABELS, seed=1)

    expected = make()
    with torch.device("meta"):
        loss = make()
    loss.to_empty(device="cpu").load_state_dict(expected.state_dict())
    features = torch.randn(B, 8), torch.randn(B, 9), INDEX
    assert torch.equal(loss(*features), expected(*features))


@pytest.mark.parametrize(
    ("default", "dtype"), [(torch.float64, torch.float64), (torch.bfloat16, torch.float32), (None, torch.float32)]
)
def test_log_z_is_never_narrower_than_fp32(default, dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(default or before)
    try:
        assert CRDLoss(8, 9, N, nce_k=K).contrast.log_z.dtype == dtype
    finally:
        torch.set_default_dtype(before)


def test_a_negated_view_is_scored_and_not_updated():
    bank, x = torch.randn(N, D), torch.randn(B, D)
    s = NegativeSampler(N, K, seed=0)
    negated = F.bank_nce(x, torch._neg_view(bank), INDEX, negatives=s, log_z=2.0)
    assert torch.equal(negated, F.bank_nce(x, -bank, INDEX, negatives=s, log_z=2.0))
    with pytest.raises(ValueError, match="bank: expected a tensor that holds its own values"):
        F.bank_update_(torch._neg_view(bank), INDEX, x)


@pytest.mark.parametrize("log_z", [1e39, math.inf, -math.inf])
def test_a_log_z_that_fp32_cannot_hold_is_refused(log_z):
    x, bank, s = torch.randn(B, D), torch.randn(N, D), NegativeSampler(N, K, seed=0)
    with pytest.raises(ValueError, match=r"log_z: expected a number that is finite in torch.float32, or NaN"):
        F.bank_nce(x, bank, INDEX, negatives=s, log_z=log_z)
    assert F.bank_nce(x, bank, INDEX, negatives=s, log_z=math.nan).isnan().all()
    assert abs(log_z) == math.inf or F.bank_nce(x.double(), bank, INDEX, negatives=s, log_z=log_z).isfinite().all()


def test_an_update_of_a_bank_row_that_is_not_finite_names_the_bank():
    bank = torch.full((N, D), math.nan)
    with pytest.raises(
        ValueError, match=r"rows: row 0 holds up to 1 and the norm.* is nan; expected a finite bank row"
    ):
        F.bank_update_(bank, INDEX, torch.ones(B, D))


def test_explain_names_the_class_sums():
    for options, named in (({"k": "all"}, True), ({"k": 5}, False), ({"k": "all", "plan": "dense"}, False)):
        actual = wcord_fast.explain("bank_mean_score", num_data=N, **options)
        assert ("for a MemoryBank" in actual.reason) is named
    bank = MemoryBank(N, D)
    F.bank_mean_score(torch.randn(B, D), bank, INDEX, negatives=NegativeSampler(N, "all"))
    assert bank.current_sums() is not None


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: NegativeSampler(N, 2**33), ValueError, r"k: expected an int below 8589934592"),
        (lambda: NegativeSampler(N, K, weights="ab"), TypeError, r"weights: expected 50 numbers, got str"),
        (
            lambda: NegativeSampler(N, K, weights=[1j] * N),
            TypeError,
            r"weights: expected real numbers, got dtype torch.complex64",
        ),
        (lambda: setattr(NegativeSampler(N, K), "step", 2**63), ValueError, r"step: expected an int below"),
    ],
)
def test_sampler_options_out_of_range_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_an_update_of_many_rows_takes_no_square_of_them():
    many = 100_000  # squared: 10 GB
    rows, index = torch.randn(many, 2), torch.arange(many) // 2
    bank = MemoryBank(many, 2, seed=1)
    F.bank_mean_score(rows[:1], bank, index[:1], negatives=NegativeSampler(many, "all"))
    expected = bank.rows.clone()
    bank.update_(index, rows)  # by the native code, and the class sums follow
    with wcord_fast.use_backend("reference"):
        F.bank_update_(expected, index, rows)
    torch.testing.assert_close(bank.rows, expected)
    torch.testing.assert_close(bank.current_sums().sums[0], bank.rows.double().sum(0), rtol=0, atol=1e-6)


NO_MEMORY = """
import resource, sys, torch
from wcord_fast.functional.bank import draw_spec
from wcord_fast.ops.bank.native_cpu import Call
torch.set_num_threads(2)
plan, d = sys.argv[1], 2 * 10**7
x, bank, index, rows = torch.zeros(1, 2, d), torch.zeros(2, d), torch.arange(2), torch.ones(2, 600, dtype=torch.int64)
few, many = (Call("mean_score", x[..., :n], [bank[:, :n]], index, draw_spec(rows, 2, 2), True) for n in (5, d))
expected = few.run(plan)
limit = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + 20 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    many.run(plan)  # a thread's scratch would be 10 GB (dense), or a row of 80 MB, more than malloc has in reserve
except MemoryError:
    raise SystemExit(0 if torch.equal(few.run(plan), expected) else 1)
raise SystemExit(2)
"""


@needs_native
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
@pytest.mark.parametrize("plan", ["gather", "dense"])
def test_threads_without_memory_raise_an_error(plan, tmp_path):
    done = alone(tmp_path, run_code, NO_MEMORY, plan)
    assert done.returncode == 0, (done.returncode, done.stderr)


@pytest.mark.parametrize(
    "loss", [CRDLoss(5, 6, N, nce_k=4, feat_dim=D), WCoRDLoss(5, 6, N, num_negatives=4, feat_dim=D)]
)
def test_a_loss_has_a_shape_on_meta(loss):
    loss.to("meta")
    f_s = torch.empty(B, 5, device="meta", requires_grad=True)
    value = loss(f_s, torch.empty(B, 6, device="meta"), INDEX.to("meta"))
    assert value.shape == () and value.device.type == "meta"
    value.backward()
    assert f_s.grad.shape == f_s.shape


@pytest.mark.filterwarnings("ignore:Complex modules")
def test_a_complex_bank_is_refused():
    bank = MemoryBank(N, D).to(torch.complex64)
    with pytest.raises(TypeError, match=r"bank: expected dtype .*, got complex64"):
        F.bank_nce(torch.randn(B, D), bank, INDEX, negatives=NegativeSampler(N, K), log_z=0.0)
    with pytest.raises(TypeError, match=r"bank: expected dtype .*, got complex64"):
        bank.update_(INDEX, torch.randn(B, D))


def test_a_queue_that_is_not_full_is_no_bank():
    queue, anchor = FeatureQueue(20, 8), torch.randn(2, 8)
    queue.push_(torch.randn(19, 8))
    arguments = {"index": torch.tensor([0, 1]), "negatives": torch.zeros(2, 3, dtype=torch.int64)}
    with pytest.raises(ValueError, match=r"^bank: expected a full queue, got one with 19 of 20 rows pushed"):
        F.bank_infonce(anchor, queue, **arguments)
    queue.push_(torch.randn(1, 8))
    assert F.bank_infonce(anchor, queue, **arguments).isfinite().all()


def test_rows_are_named_as_the_caller_counts_them():
    anchor = torch.tensor([[1.0, 2], [3, math.nan]])
    arguments = {"index": torch.tensor([0, 1]), "negatives": torch.zeros(2, 1, dtype=torch.int64)}
    with pytest.raises(ValueError, match=r"^anchor: row 1 holds nan"):
        F.bank_nce(anchor, torch.randn(5, 2), log_z=0.0, **arguments)
    with pytest.raises(ValueError, match=r"^log_z: expected a number that is finite, or NaN, got inf"):
        F.bank_nce(torch.randn(2, 2), torch.randn(5, 2), log_z=torch.tensor(math.inf), **arguments)


def test_a_queue_is_scored_in_a_compiled_function_without_a_break():
    queue, anchor = FeatureQueue(20, 8), torch.randn(2, 8)
    queue.push_(torch.randn(20, 8))
    index, negatives = torch.tensor([0, 1]), torch.zeros(2, 3, dtype=torch.int64)
    compiled = torch.compile(
        lambda x: F.bank_infonce(x, queue, index, negatives=negatives), backend="eager", fullgraph=True
    )
    torch.testing.assert_close(compiled(anchor), F.bank_infonce(anchor, queue, index, negatives=negatives))
