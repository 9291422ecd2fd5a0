"""The CUDA bank kernels on a device: against the float64 reference on the CPU, without a sync, in a CUDA graph."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
import torch

from wcord_fast.ops import status
from wcord_fast.ops.bank import critics, membership, native_cuda, partials, reference
from wcord_fast.ops.bank.autograd import spec_args
from wcord_fast.ops.bank.part import Part
from wcord_fast.ops.sampling.spec import ALL, DrawSpec

from . import draw_specs

pytestmark = pytest.mark.gpu

TEMPERATURE = 0.07
SOURCES = [("none", "no"), ("self", "no"), ("class", "no"), ("class", "yes"), ("weighted", "yes")]


def on(device: str, spec: DrawSpec) -> DrawSpec:
    tables = [t.to(device) for t in spec.tables]
    return DrawSpec(spec.source, spec.k, spec.replacement, spec.expected, spec.anchor_offset, tables)


class Problem:
    """One set of anchors, banks and draws on both devices."""

    def __init__(self, num_data, batch, k, dim, source="class", replacement="no", dtype=torch.float32, given=False):
        g = torch.Generator().manual_seed(num_data + dim)
        case = draw_specs.Case(random.Random(dim), num_data, batch, k, source, replacement)
        self.index, self.spec, self.num_data = torch.tensor(case.index), case.spec(), num_data
        if given:
            rows = torch.randint(0, num_data, (batch, k), generator=g)
            self.spec = DrawSpec("given", k, "no", False, 0, [rows])
        self.anchors = torch.nn.functional.normalize(torch.randn(2, batch, dim, generator=g), dim=-1)
        rows = torch.nn.functional.normalize(torch.randn(2, num_data, dim, generator=g), dim=-1)
        self.banks = list(rows.to(dtype))
        self.log_z = torch.tensor([math.log(num_data), math.log(num_data) + 0.3])
        self.there = (self.anchors.cuda(), [bank.cuda() for bank in self.banks], self.index.cuda())
        self.spec_there = on("cuda", self.spec)

    def nce(self):
        args = *self.there, self.log_z.cuda(), self.spec_there, TEMPERATURE, True, "gather", "auto"
        return native_cuda.bank_nce(*args)

    def critics(self, module, anchors, banks, index, spec, part=None):
        """The sums of InfoNCE and of the sigmoid: log-sum-exp, mean row; softplus, slope, row."""
        scale, bias = (torch.tensor(v, device=anchors.device) for v in (8.0, -4.5))
        end = True, "gather", "auto", part
        infonce = module.bank_infonce(anchors, banks, index, spec, TEMPERATURE, *end)
        return *infonce, *module.bank_sigmoid(anchors, banks, index, scale, bias, spec, *end)

    def check_critics(self) -> None:
        exact = self.anchors.double(), [bank.double() for bank in self.banks], self.index, self.spec
        results = self.critics(native_cuda, *self.there, self.spec_there), self.critics(reference, *exact)
        for actual, expected in zip(*results, strict=True):
            actual = actual.cpu().double()
            if actual.dim() == 2:
                torch.testing.assert_close(actual, expected, rtol=2e-6, atol=2e-6)
            else:
                assert ((actual - expected).norm(dim=-1) <= 1e-5 * expected.norm(dim=-1)).all()

    def expected(self):
        exact = self.anchors.double(), [bank.double() for bank in self.banks], self.index, self.log_z.double()
        return reference.bank_nce(*exact, self.spec, TEMPERATURE, True, "gather", "auto")

    def check(self) -> None:
        loss, grad = (t.cpu().double() for t in self.nce())
        expected = self.expected()
        torch.testing.assert_close(loss, expected[0], rtol=1e-6, atol=0)
        assert ((grad - expected[1]).norm(dim=-1) <= 1e-5 * expected[1].norm(dim=-1)).all()


NCE_AND_CRITICS = pytest.mark.parametrize("check", [Problem.check, Problem.check_critics], ids=["nce", "critics"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("dim", [64, 128, 256, 1, 33, 300])
@NCE_AND_CRITICS
def test_every_dtype_and_width(check, dtype, dim):
    check(Problem(5000, 70, 1501, dim, dtype=dtype))


@pytest.mark.parametrize(("source", "replacement"), SOURCES)
@pytest.mark.parametrize("dim", [128, 20])
@NCE_AND_CRITICS
def test_every_source(check, source, replacement, dim):
    check(Problem(3000, 9, 1100, dim, source, replacement))


@pytest.mark.parametrize("dim", [128, 20])
def test_given_rows_and_whole_pools(dim):
    Problem(3000, 9, 700, dim, given=True).check()
    for k, expected in ((ALL, False), (100, True)):
        problem = Problem(3000, 9, 1, dim)
        problem.spec = DrawSpec("class", k, "no", expected, 0, problem.spec.tables)
        problem.spec_there = on("cuda", problem.spec)
        problem.check()


@pytest.mark.parametrize("dim", [128, 20])
def test_critics_of_parts_join_to_those_of_the_whole_bank(dim):
    problem = Problem(3000, 9, 1100, dim)
    x, banks, index = problem.there
    whole, parts = problem.critics(native_cuda, x, banks, index, problem.spec_there), []
    for lo, hi in pairwise((0, 1, 1025, 3000)):
        own = [bank[lo:hi] for bank in banks]
        parts.append(problem.critics(native_cuda, x, own, index, problem.spec_there, Part(lo, 3000)))
    log_sum, mean, *sums = (torch.stack(t) for t in zip(*parts, strict=True))
    joined = log_sum.logsumexp(0)
    results = joined, (mean * reference.portion(log_sum, joined)[..., None]).sum(0), *(t.sum(0) for t in sums)
    for actual, expected in zip(results, whole, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_critics_wait_for_no_device_and_flag_a_bad_index():
    problem = Problem(3000, 9, 1100, 128)
    x, banks, index = problem.there
    problem.critics(native_cuda, x, banks, index, problem.spec_there)  # builds what is built once
    index[2] = 3000
    scale, bias = torch.tensor(8.0, device="cuda"), torch.tensor(-4.5, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        args, spec, end = (x, banks, index, None), spec_args(problem.spec_there), (True, "gather", "native")
        infonce = critics.infonce(*args, *spec, TEMPERATURE, *end)[0]
        sigmoid = critics.sigmoid(*args, scale, bias, *spec, *end)[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for loss in (infonce, sigmoid):
        assert loss.isnan().tolist() == [[row == 2 for row in range(9)]] * 2
    with pytest.raises(ValueError, match="a row index was out of"):
        status.check()


@pytest.mark.parametrize("dim", [128, 20])
def test_mean_score_and_log_z(dim):
    problem = Problem(4000, 30, 900, dim, dtype=torch.bfloat16)
    exact = problem.anchors.double(), [bank.double() for bank in problem.banks], problem.index, problem.spec
    mean, grad = native_cuda.bank_mean_score(*problem.there, problem.spec_there, True, "gather", "auto")
    expected = reference.bank_mean_score(*exact, True, "gather", "auto")
    torch.testing.assert_close(mean.cpu().double(), expected[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(grad.cpu().double(), expected[1], rtol=0, atol=1e-6)
    args = *problem.there, problem.spec_there, TEMPERATURE, "gather", "auto"
    log_z = reference.bank_log_z(*exact, TEMPERATURE, "gather", "auto")
    torch.testing.assert_close(native_cuda.bank_log_z(*args).cpu().double(), log_z, rtol=1e-6, atol=0)
    known = torch.tensor([2.5, torch.nan], device="cuda")
    actual = native_cuda.bank_log_z(*args, known)
    assert actual[0] == 2.5 and math.isclose(actual[1], log_z[1], rel_tol=1e-6)


@pytest.mark.parametrize(("source", "replacement"), [*SOURCES, ("given", "no"), ("whole", "no")])
@pytest.mark.parametrize("dim", [128, 20])
def test_parts_equal_the_whole_bank(source, replacement, dim):
    drawn = "class" if source in ("given", "whole") else source
    problem = Problem(3000, 9, 1100, dim, drawn, replacement, given=source == "given")
    if source == "whole":
        problem.spec = DrawSpec("class", ALL, "no", False, 0, problem.spec.tables)
        problem.spec_there = on("cuda", problem.spec)
    (x, banks, index), log_z, spec = problem.there, problem.log_z.cuda(), problem.spec_there
    wide = x.double(), [bank.double() for bank in banks]
    losses, grads = [], []
    for lo, hi in pairwise((0, 1, 1025, 1026, 3000)):
        part, own = Part(lo, 3000), [bank[lo:hi] for bank in banks]
        loss, grad = native_cuda.bank_nce(x, own, index, log_z, spec, TEMPERATURE, True, "gather", "auto", part)
        args = index, log_z.double(), spec, TEMPERATURE, True, "gather", "auto", part
        expected = reference.bank_nce(wide[0], [bank[lo:hi] for bank in wide[1]], *args)
        torch.testing.assert_close(loss.double(), expected[0], rtol=5e-6, atol=0)
        assert ((grad - expected[1]).norm(dim=-1) <= 1e-5 * expected[1].norm(dim=-1)).all()
        lse = native_cuda.bank_log_sum_exp(x, own, index, spec, TEMPERATURE, "gather", "auto", part)
        args = index, spec, TEMPERATURE, "gather", "auto", part
        expected = reference.bank_log_sum_exp(wide[0], [bank[lo:hi] for bank in wide[1]], *args)
        torch.testing.assert_close(lse, expected, rtol=0, atol=1e-5)
        losses.append(loss.double())
        grads.append(grad.double())
    expected = problem.expected()
    torch.testing.assert_close(sum(losses).cpu(), expected[0], rtol=1e-6, atol=0)
    assert ((sum(grads).cpu() - expected[1]).norm(dim=-1) <= 1e-5 * expected[1].norm(dim=-1)).all()


def test_parts_are_bit_identical_do_not_sync_and_skip_rows_of_other_parts():
    problem = Problem(20_000, 64, 4096, 128, dtype=torch.bfloat16)
    (x, banks, index), log_z, spec = problem.there, problem.log_z.cuda(), problem.spec_there
    part, held = Part(5000, 20_000), [bank[5000:6001] for bank in banks]
    args = x, held, part, index, log_z, spec, TEMPERATURE, True, "auto", "native"
    first = partials.nce(*args)
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = partials.nce(*args)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for bank in banks:  # other rows may have any value
        bank[:5000], bank[6001:] = torch.nan, torch.nan
    assert all(torch.equal(a, b) for a, b in zip(first, partials.nce(*args), strict=True))


def test_repeats_are_bit_identical_and_nothing_syncs():
    problem = Problem(20_000, 64, 4096, 128, dtype=torch.bfloat16)
    first, log_z = problem.nce(), problem.log_z.cuda()
    membership.draw_mask(problem.there[2], problem.num_data, problem.spec_there)  # the first call of all may sync
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            args = *problem.there, log_z, problem.spec_there, TEMPERATURE, True, "gather", "auto"
            again = native_cuda.bank_nce(*args)
            membership.draw_mask(problem.there[2], problem.num_data, problem.spec_there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_captured_graph_draws_anew_at_each_replay():
    problem = Problem(6000, 64, 1000, 128)
    status.word(torch.device("cuda"))
    state, log_z = problem.spec_there.table("state"), problem.log_z.cuda()
    args = *problem.there, log_z, problem.spec_there, TEMPERATURE, True, "gather", "auto"
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        native_cuda.bank_nce(*args)
        membership.draw_mask(problem.there[2], problem.num_data, problem.spec_there)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, _ = native_cuda.bank_nce(*args)
        mask = membership.draw_mask(problem.there[2], problem.num_data, problem.spec_there)
        state[1:] += 1
    losses = []
    for _ in range(3):
        graph.replay()
        losses.append(loss.cpu().double())
        torch.testing.assert_close(losses[-1], problem.expected()[0], rtol=1e-6, atol=0)
        assert torch.equal(mask.cpu(), membership.draw_mask(problem.index, problem.num_data, problem.spec))
        problem.spec.table("state")[1:] += 1
    assert not torch.equal(losses[0], losses[1])


@pytest.mark.parametrize("num_data", [1000, 50_000, 90_000, 1_400_001])
@pytest.mark.parametrize(("k", "replacement"), [(900, "no"), (40_000, "yes")])
def test_membership(num_data, k, replacement):
    state = torch.tensor([12345, 6])
    index = torch.randint(0, num_data, (5,))
    spec = DrawSpec("self", k, replacement, False, 2, [state])
    for function in (membership.draw_mask, membership.draw_counts):
        actual = function(index.cuda(), num_data, on("cuda", spec), "native")
        assert torch.equal(actual.cpu(), function(index, num_data, spec))
        held = (num_data // 3 + 1, num_data // 2)
        actual = function(index.cuda(), num_data, on("cuda", spec), "native", held)
        assert torch.equal(actual.cpu(), function(index, num_data, spec, held=held))


@pytest.mark.parametrize("dim", [128, 20])
def test_bad_values_give_nan_and_flags(dim):
    problem = Problem(3000, 6, 900, dim)
    good = problem.nce()[0]
    anchors, _, index = problem.there
    anchors[0, 1, 3], index[4] = torch.nan, 3000
    loss, grad = problem.nce()
    bad = torch.zeros(2, 6, dtype=torch.bool, device="cuda")
    bad[0, 1] = bad[:, 4] = True
    assert torch.equal(loss.isnan(), bad) and torch.equal(grad.isnan().all(-1), bad)
    assert torch.equal(loss[~bad], good[~bad])
    with pytest.raises(ValueError, match=r"out of \[0, N\).*anchor held NaN"):
        status.check()


def test_rows_beyond_two_billion_elements():
    num_data = 2**24 + 100  # times 128: 4.3 GB in bf16
    bank = torch.zeros(num_data, 128, dtype=torch.bfloat16, device="cuda")
    bank[-1] = 1.0
    x, index = torch.ones(1, 1, 128, device="cuda"), torch.tensor([0], device="cuda")
    spec = DrawSpec("given", 1, "no", False, 0, [torch.tensor([[num_data - 1]], device="cuda")])
    mean, grad = native_cuda.bank_mean_score(x, [bank], index, spec, True, "gather", "auto")
    assert mean.item() == 128 and torch.equal(grad, torch.ones_like(grad))
