"""The dense Triton plan, interpreted on the CPU, against the float64 reference.

tests/test_bank_triton.py runs this file in a process of its own, since TRITON_INTERPRET=1 must be set before triton is
imported and holds for all of it. Shapes are tiny: a program costs some 100 ms here.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from wcord_fast import NegativeSampler
from wcord_fast.ops import dispatch, status, triton_module
from wcord_fast.ops.bank import reference, triton, triton_launch
from wcord_fast.ops.bank.part import Part
from wcord_fast.ops.sampling.spec import DrawSpec
from wcord_fast.ops.status import Code

N, D, B, TAU = 70, 12, 3, 0.07
LABELS = torch.arange(N) % 5
UNEVEN = torch.cat((torch.zeros(50, dtype=torch.int64), torch.arange(20) % 4 + 1))
SAMPLERS = {
    "none": {"k": 20, "exclude": "none"},
    "self": {"k": 69, "exclude": "self"},
    "class": {"k": 20, "labels": LABELS},
    "replacement": {"k": 700, "labels": LABELS, "replacement": True},  # counts above 1
    "auto": {"k": 33, "labels": UNEVEN},  # some anchors with replacement
    "weights": {"k": 33, "weights": torch.arange(N, dtype=torch.float64)},
    "all": {"k": "all", "exclude": "none"},
    "all_self": {"k": "all", "exclude": "self"},
    "all_class": {"k": "all", "labels": UNEVEN},
    "expected": {"k": 20, "labels": UNEVEN, "expected": True},
}


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """Memory that no kernel writes stays NaN."""
    for name in ("empty", "scratch"):
        for owner in (triton_launch.Call, triton_launch.Piece):
            if hasattr(owner, name):
                original = getattr(owner, name)
                monkeypatch.setattr(owner, name, lambda *a, f=original: f(*a).fill_(torch.nan))


def spec_of(name, num_data=N):
    return NegativeSampler(num_data, seed=11, **SAMPLERS[name]).spec(3)


def problem(directions=1, batch=B, num_data=N, dim=D, dtype=torch.float32, bank_dtype=torch.float32):
    g = torch.Generator().manual_seed(batch + dim)
    anchors = torch.nn.functional.normalize(torch.randn(directions, batch, dim, generator=g), dim=-1).to(dtype)
    rows = torch.nn.functional.normalize(torch.randn(directions, num_data, dim, generator=g), dim=-1).to(bank_dtype)
    index = torch.randint(0, num_data, (batch,), generator=g)
    return anchors, list(rows), index, torch.linspace(3.0, 5.0, directions)


def exact(anchors, banks):
    return anchors.double(), [bank.double() for bank in banks]


def error(ours, expected):
    return float((ours - expected).norm() / expected.norm())


def check_nce(anchors, banks, index, log_z, spec, loss_tol=1e-6, grad_tol=1e-5, tau=TAU):
    loss, grad = triton.bank_nce(anchors, banks, index, log_z, spec, tau, True, "dense", "triton")
    x, rows = exact(anchors, banks)
    args = (index, log_z.double(), spec, tau, True, "dense", "reference")
    expected_loss, expected_grad = reference.bank_nce(x, rows, *args)
    assert loss.dtype == grad.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected_loss, rtol=loss_tol, atol=0)
    for ours, theirs in zip(grad.flatten(0, 1), expected_grad.flatten(0, 1), strict=True):
        assert error(ours, theirs) < grad_tol
    return loss, grad


def check_mean(anchors, banks, index, spec, grad_tol=1e-6):
    mean, grad = triton.bank_mean_score(anchors, banks, index, spec, True, "dense", "triton")
    expected_mean, expected_grad = reference.bank_mean_score(
        *exact(anchors, banks), index, spec, True, "dense", "reference"
    )
    torch.testing.assert_close(mean.double(), expected_mean, rtol=1e-6, atol=1e-7)
    assert error(grad, expected_grad) < grad_tol


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.filterwarnings("ignore:k = 33 exceeds a pool")
def test_every_sampler(name):
    anchors, banks, index, log_z = problem(2 if name == "class" else 1)
    check_nce(anchors, banks, index, log_z, spec_of(name))
    check_mean(anchors, banks, index, spec_of(name))
    estimate = triton.bank_log_z(anchors, banks, index, spec_of(name), TAU, "dense", "triton")
    expected = reference.bank_log_z(*exact(anchors, banks), index, spec_of(name), TAU, "dense", "reference")
    torch.testing.assert_close(estimate.double(), expected, rtol=1e-6, atol=0)


def test_explicit_rows_with_repeats():
    anchors, banks, index, log_z = problem()
    rows = torch.randint(0, 9, (B, 40), generator=torch.Generator().manual_seed(0))
    spec = DrawSpec("given", 40, "no", False, 0, [rows])
    check_nce(anchors, banks, index, log_z, spec)
    check_mean(anchors, banks, index, spec)


def check_parts(anchors, banks, index, log_z, spec, cuts, tol=4e-6):
    """Each part, rows [lo, hi), against the reference's, and losses, gradients and sums of all against the whole."""
    x, rows = exact(anchors, banks)
    theirs, shares = (log_z.double(), spec, TAU, True, "dense", "reference"), []
    for lo, hi in pairwise(cuts):
        part, own, wide = Part(lo, banks[0].shape[0]), [b[lo:hi] for b in banks], [b[lo:hi] for b in rows]
        loss, grad = triton.bank_nce(anchors, own, index, log_z, spec, TAU, True, "dense", "auto", part)
        expected = reference.bank_nce(x, wide, index, *theirs, part)
        torch.testing.assert_close(loss.double(), expected[0], rtol=tol, atol=0)
        torch.testing.assert_close(grad.double(), expected[1], rtol=0, atol=1e-5 * float(expected[1].abs().max()))
        mean = triton.bank_mean_score(anchors, own, index, spec, True, "dense", "auto", part)
        expected = reference.bank_mean_score(x, wide, index, spec, True, "dense", "reference", part)
        torch.testing.assert_close(mean[0].double(), expected[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(mean[1].double(), expected[1], rtol=0, atol=1e-6)
        args = index, spec, TAU, "dense", "reference", part
        total = triton.bank_log_sum_exp(anchors, own, *args)
        torch.testing.assert_close(total, reference.bank_log_sum_exp(x, wide, *args), rtol=0, atol=1e-5)
        shares.append((loss.double(), grad.double(), total))
    loss, grad, total = (torch.stack(t) for t in zip(*shares, strict=True))
    expected = reference.bank_nce(x, rows, index, *theirs)
    torch.testing.assert_close(loss.sum(0), expected[0], rtol=1e-6, atol=0)
    assert error(grad.sum(0), expected[1]) < 1e-5
    whole = reference.bank_log_sum_exp(x, rows, index, spec, TAU, "dense", "reference")
    torch.testing.assert_close(total.logsumexp(0), whole, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", SAMPLERS)  # "self" draws the whole pool, "replacement" has counts above 1
@pytest.mark.filterwarnings("ignore:k = 33 exceeds a pool")
def test_parts_of_every_sampler(name):
    check_parts(*problem(2 if name == "class" else 1), spec_of(name), (0, 1, 33, N))


def test_parts_of_one_row_drawn_hundreds_of_times_and_of_explicit_rows():
    args = problem(1, num_data=3)
    check_parts(*args, NegativeSampler(3, 900, exclude="none", seed=1, replacement=True).spec(), (0, 1, 2, 3))
    rows = torch.randint(0, 9, (B, 40), generator=torch.Generator().manual_seed(0))
    check_parts(*problem(), DrawSpec("given", 40, "no", False, 0, [rows]), (0, 5, 40, N))


@pytest.mark.parametrize("name", ["class", "all_class"])
def test_parts_in_a_narrow_type_with_long_rows_and_splits(monkeypatch, name):
    monkeypatch.setattr(triton_launch, "processors", lambda device: 99)
    check_parts(*problem(1, dim=130, bank_dtype=torch.bfloat16), spec_of(name), (0, 37, N))


def test_a_part_that_is_all_rows_gives_the_same_bits():
    anchors, banks, index, log_z = problem()
    args = (anchors, banks, index, log_z, spec_of("class"), TAU, True, "dense", "auto")
    for ours, theirs in zip(triton.bank_nce(*args, Part(0, N)), triton.bank_nce(*args), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "dtype, bank_dtype",
    [
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float16),
    ],
)
def test_dtypes_against_float64_on_the_rounded_inputs(dtype, bank_dtype):
    anchors, banks, index, log_z = problem(dtype=dtype, bank_dtype=bank_dtype)
    check_nce(anchors, banks, index, log_z, spec_of("class"))
    check_mean(anchors, banks, index, spec_of("class"))


@pytest.mark.parametrize("precision, tol", [("high", 2e-5), ("medium", 1e-2)])
def test_lower_matmul_precision_is_used_and_bounded(precision, tol):
    anchors, banks, index, log_z = problem()
    before = torch.get_float32_matmul_precision()
    full, _ = triton.bank_nce(anchors, banks, index, log_z, spec_of("class"), TAU, True, "dense", "triton")
    try:
        torch.set_float32_matmul_precision(precision)
        low, _ = check_nce(anchors, banks, index, log_z, spec_of("class"), tol, tol)
        check_mean(anchors, banks, index, spec_of("class"), tol) if precision == "high" else None
    finally:
        torch.set_float32_matmul_precision(before)
    assert not torch.equal(full, low)


@pytest.mark.parametrize(
    "directions, batch, num_data, dim", [(1, 1, 1, 1), (2, 1, 33, 3), (3, 17, 64, 16), (1, 2, 65, 130)]
)
def test_odd_shapes(directions, batch, num_data, dim):
    anchors, banks, index, log_z = problem(directions, batch, num_data, dim)
    spec = NegativeSampler(num_data, 1 if num_data == 1 else 7, exclude="none", seed=1).spec()
    check_nce(anchors, banks, index, log_z, spec)
    check_mean(anchors, banks, index, spec)


@pytest.mark.parametrize("name, row_bytes", [("class", 4 * 5), ("replacement", 4 * 150), ("all_class", 1)])
def test_splits_and_chunks_of_anchors(monkeypatch, name, row_bytes):
    labels = torch.arange(150) % 5
    spec = NegativeSampler(150, seed=11, **(SAMPLERS[name] | {"labels": labels})).spec()
    args = (*problem(2, num_data=150), spec)

    def cut():  # (splits, launches) of one call
        pieces = list(triton_launch.Call(args[0], args[1], args[2], spec, "dense", "auto").pieces(True))
        return pieces[0].scratch().shape[0], len(pieces)

    monkeypatch.setattr(triton_launch, "processors", lambda device: 1)
    assert cut() == (1, 1)
    check_nce(*args)
    monkeypatch.setattr(triton_launch, "processors", lambda device: 99)
    assert cut() == (3, 1)
    loss, grad = check_nce(*args)
    again, _ = check_nce(*args)
    assert torch.equal(again, loss)
    monkeypatch.setattr(triton_launch, "CHUNK_BYTES", 2 * row_bytes)
    assert cut()[1] == (1 if name == "all_class" else 2)
    chunk_loss, chunk_grad = check_nce(*args)
    assert torch.equal(chunk_loss, loss) and torch.equal(chunk_grad, grad)


@pytest.mark.parametrize("batch", [1, 64, 300, 9000])
@pytest.mark.parametrize("bank_dtype", [torch.float32, torch.bfloat16])
def test_scratch_memory_is_what_the_readme_states(monkeypatch, batch, bank_dtype):
    monkeypatch.setattr(triton_launch, "processors", lambda device: 132)
    monkeypatch.setattr(triton_launch, "capability", lambda device: 9)
    anchors, banks = torch.empty(2, batch, 128), [torch.empty(50_000, 128, dtype=bank_dtype)] * 2
    spec = NegativeSampler(50_000, "all", exclude="self").spec()
    call = triton_launch.Call(anchors, banks, torch.zeros(batch, dtype=torch.int64), spec, "dense", "auto")
    (piece,) = call.pieces(by_column=True)
    assert piece.scratch().numel() <= max(132 * 128, 2 * batch)


def test_hopper_tiles(monkeypatch):
    monkeypatch.setattr(triton_launch, "capability", lambda device: 9)
    assert triton_launch.blocks(9, D, 33, 1, False).block_n == 64
    check_nce(*problem(1, 33, bank_dtype=torch.bfloat16), spec_of("class"))


def test_banks_of_different_dtypes_and_strides():
    anchors, banks, index, log_z = problem(2)
    wide = torch.zeros(N, 20)
    wide[:, :D] = banks[0]
    mixed = [wide[:, :D], banks[1].bfloat16()]
    check_nce(anchors, mixed, index, log_z, spec_of("self"))
    check_nce(anchors, [banks[0].T.contiguous().T, banks[1]], index, log_z, spec_of("self"))
    check_mean(anchors.transpose(0, 1).contiguous().transpose(0, 1), mixed, index, spec_of("self"))


def test_no_row_behind_the_bank_is_read():
    """NaN stands there, which a weight of zero does not hide."""
    anchors, banks, index, log_z = problem(2)
    longer = [torch.cat([bank, torch.full((64, D), torch.nan)]) for bank in banks]
    held = [bank[:N] for bank in longer]
    check_nce(anchors, held, index, log_z, spec_of("class"))
    check_mean(anchors, held, index, spec_of("replacement"))


@pytest.mark.parametrize("name", ["class", "replacement"])
@pytest.mark.parametrize("tau, shift", [(0.002, 0.0), (0.07, 60.0), (0.07, -60.0), (5.0, 0.0)])
def test_terms_of_any_size(name, tau, shift):
    """u from -500 to 500: nothing overflows, and small terms keep their digits."""
    anchors, banks, index, log_z = problem()
    check_nce(
        anchors, banks, index, log_z + shift, spec_of(name), loss_tol=4e-6 if shift or tau < 0.07 else 1e-6, tau=tau
    )


@pytest.mark.parametrize("name", ["self", "replacement", "all_self"])
def test_small_terms_keep_their_digits(name):
    """A loss that is all negatives, each exp(u) of some 1e-4: log(1 + exp(u)) has half of fp32's digits left."""
    _, banks, index, _ = problem(batch=1)
    banks[0][:, 0] = 0
    banks[0][index] = torch.eye(D)[0]
    spec = NegativeSampler(N, seed=11, **(SAMPLERS[name] | {"labels": torch.arange(N)})).spec()
    check_nce(torch.eye(D)[0].expand(1, 1, D), banks, index, torch.tensor([10.0]), spec, tau=0.05)


@pytest.mark.parametrize("name, num_data, share", [("all", 400, 1.0), ("none", 1600, 1.0), ("replacement", N, 10.0)])
def test_equal_scores_fill_the_product(name, num_data, share):
    """All factors 1 + t = 2: the products over many tiles, and the series for log(1 + t), are at their largest."""
    _, banks, index, _ = problem(num_data=num_data)
    spec = NegativeSampler(num_data, seed=11, **(SAMPLERS[name] | ({"k": num_data} if name == "none" else {}))).spec(3)
    log_z = -torch.log(torch.tensor([share + reference.EPS]))  # u = 0
    check_nce(torch.zeros(1, B, D), banks, index, log_z, spec)


def test_no_gradient_wanted():
    anchors, banks, index, log_z = problem()
    args = (anchors, banks, index, log_z, spec_of("class"), TAU)
    loss, grad = triton.bank_nce(*args, False, "dense", "triton")
    assert grad.numel() == 0 and torch.equal(loss, triton.bank_nce(*args, True, "dense", "triton")[0])
    mean, grad = triton.bank_mean_score(anchors, banks, index, spec_of("class"), False, "dense", "triton")
    assert grad.numel() == 0 and torch.isfinite(mean).all()


def test_only_unset_z_is_estimated():
    anchors, banks, index, _ = problem(2)
    args = (anchors, banks, index, spec_of("class"), TAU, "dense", "triton")
    whole = triton.bank_log_z(*args)
    some = triton.bank_log_z(*args, known=torch.tensor([3.0, torch.nan]))
    assert some[1] == whole[1] and some[0] != whole[0]  # the first one's walk was skipped


def test_unset_z_is_nan():
    anchors, banks, index, _ = problem(2)
    log_z = torch.tensor([torch.nan, 4.0])
    loss, grad = triton.bank_nce(anchors, banks, index, log_z, spec_of("class"), TAU, True, "dense", "triton")
    assert loss[0].isnan().all() and grad[0].isnan().all() and torch.isfinite(loss[1]).all()


def test_an_anchor_that_is_not_finite_leaves_the_others_alone():
    anchors, banks, index, log_z = problem()
    spec = spec_of("class")
    whole, _ = triton.bank_nce(anchors, banks, index, log_z, spec, TAU, True, "dense", "triton")
    anchors[0, 1, 2] = torch.inf
    loss, grad = triton.bank_nce(anchors, banks, index, log_z, spec, TAU, True, "dense", "triton")
    assert torch.equal(loss[0, ::2], whole[0, ::2]) and torch.isfinite(grad[0, ::2]).all()


@pytest.mark.parametrize("row", [-1, N, 2**40])
@pytest.mark.parametrize("name", ["all_self", "all_class"])
def test_kernels_flag_bad_values_and_leave_the_other_anchors_alone(name, row):
    anchors, banks, index, log_z = problem(2)
    flags()
    ops = [
        lambda: triton.bank_nce(anchors, banks, index, log_z, spec_of(name), TAU, True, "dense", "triton"),
        lambda: triton.bank_mean_score(anchors, banks, index, spec_of(name), True, "dense", "triton"),
        lambda: (triton.bank_log_z(anchors, banks, index, spec_of(name), TAU, "dense", "triton"),),
    ]
    whole = [op() for op in ops]
    assert flags() == 0
    index[0], anchors[1, 2, 3] = row, torch.nan
    bad = torch.tensor([[True, False, False], [True, False, True]])
    for op, right in zip(ops, whole, strict=True):
        for actual, expected in zip(op(), right, strict=True):
            if actual.dim() == 1:  # log Z is not to be frozen at an estimate from such anchors
                assert actual.isnan().all()
                continue
            assert torch.equal(actual.flatten(2).isnan().all(-1) if actual.dim() > 2 else actual.isnan(), bad)
            assert torch.equal(actual[~bad], expected[~bad])
        assert flags() == Code.INDEX | Code.ANCHOR
    anchors[1, 2, 3], index[0] = -torch.inf, 0
    ops[0]()
    assert flags() == Code.ANCHOR


def flags() -> int:
    """The status word, which is then cleared."""
    word = status.word(torch.device("cpu"))
    bits = int(word)
    word.zero_()
    return bits


def test_refusals_say_why():
    anchors, banks, index, log_z = problem()
    args = (index, log_z, spec_of("class"), TAU, True)
    with pytest.raises(NotImplementedError, match="float64"):
        triton.bank_nce(anchors.double(), banks, *args, "dense", "triton")
    with pytest.raises(NotImplementedError, match="gather"):
        triton.bank_nce(anchors, banks, *args, "gather", "triton")
    wide = torch.zeros(1, 3, triton_launch.MAX_DIM + 1)
    assert "D up to" in triton_launch.unavailable_reason(wide, banks)
    assert triton_launch.unavailable_reason(anchors, banks) is None
    assert "rows" in triton_launch.unavailable_reason(anchors, banks, Part(0, 2**31))


def test_inputs_are_not_modified():
    anchors, banks, index, log_z = problem()
    before = [t.clone() for t in (anchors, *banks, index, log_z)]
    triton.bank_nce(anchors, banks, index, log_z, spec_of("class"), TAU, True, "dense", "triton")
    assert all(torch.equal(a, b) for a, b in zip(before, (anchors, *banks, index, log_z), strict=True))


def test_the_interpreter_counts_as_a_cpu_backend():
    assert dispatch.cannot_run("triton", "cpu") is None
    assert "CPU only" in dispatch.cannot_run("triton", "cuda")
    assert triton_module.interpreted()
