"""The native step in unusual surroundings: unsupported cases take the ordinary path, and nothing crashes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.rank_pool import alone
from tests.test_native_step import B, N, batch, close, is_native, twins
from wcord_fast import NegativeSampler
from wcord_fast.nn.contrast import Contrast
from wcord_fast.nn.local_term import LocalTerm
from wcord_fast.nn.memory_bank import MemoryBank
from wcord_fast.ops import native_module

pytestmark = pytest.mark.skipif(native_module.load() is None, reason="no native module")


def execute(code: str) -> None:
    exec(code, globals())


@pytest.fixture
def in_own_process(tmp_path):
    """A function that runs `code` in another process, since a write out of bounds would end this one: its output."""

    def output(code: str) -> str:
        done = alone(tmp_path, execute, code)
        assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-500:]}"
        return done.stdout

    return output


def assert_steps_agree(ours, other, given=None, dtype=torch.float32):
    given = given or batch(1, dtype)
    theirs = [t.detach().clone().requires_grad_(t.requires_grad) for t in given]
    loss, expected = ours(*given), other(*theirs)
    close(loss, expected, dtype)
    loss.backward()
    expected.backward()
    for p, q in zip(ours.parameters(), other.parameters(), strict=True):
        close(p.grad, q.grad, dtype)
    for key, value in ours.state_dict().items():
        close(value, other.state_dict()[key], dtype)


def test_backward_within_autocast_writes_within_bounds(in_own_process):
    code = """
ours, other = twins("wcord")
grads = []
for loss in (ours, other):
    for _ in range(20):
        given = batch(1)
        loss.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss(*given).backward()
        [torch.randn(17, 3) for _ in range(20)]
    grads.append([p.grad.norm().item() for p in loss.parameters()])
print(all(abs(a - b) <= 0.05 * b for a, b in zip(*grads)))
"""
    assert in_own_process(code).strip() == "True"


@pytest.mark.parametrize("change", ["[:10].clone()", "[:, :6].contiguous()"], ids=["fewer rows", "narrower"])
@pytest.mark.parametrize("bank", ["memory_v1", "memory_v2"])
def test_banks_of_other_sizes_are_refused(bank, change, in_own_process):
    code = f"""
loss, _ = twins("crd")
bank = loss.contrast.{bank}
bank.rows = bank.rows{change}
try:
    loss(*batch(1))
except (ValueError, RuntimeError, IndexError) as e:
    print("refused")
"""
    assert in_own_process(code).strip() == "refused"


def test_a_sampler_of_another_size_is_refused(in_own_process):
    code = """
from wcord_fast import NegativeSampler
loss, _ = twins("crd")
loss.contrast.sampler = NegativeSampler(20, 8, labels=torch.arange(20) % 4, seed=3)
f_s, f_t, idx = batch(1)
try:
    loss(f_s, f_t, idx % 20 + 20)
except ValueError as e:
    print("refused")
"""
    assert in_own_process(code).strip() == "refused"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_singular_vectors_with_strides(dtype):
    ours, other = twins("wcord", dtype)
    state = {key: value.clone() for key, value in ours.state_dict().items()}
    other.load_state_dict(state, assign=True)
    state = {key: value.clone() for key, value in state.items()}
    for key in state:
        if key.endswith((".u", ".v")):
            wide = torch.full((len(state[key]), 3), 99.0, dtype=dtype)
            wide[:, 0] = state[key]
            state[key] = wide[:, 0]
    ours.load_state_dict(state, assign=True)
    assert_steps_agree(ours, other, dtype=dtype)


def test_vectors_made_by_a_load_that_assigns():
    ours, other = twins("wcord", torch.float64)
    for loss in (ours, other):
        state = {k: v.clone() for k, v in loss.state_dict().items() if not k.endswith((".u", ".v"))}
        loss.load_state_dict(state, assign=True)
    assert_steps_agree(ours, other, dtype=torch.float64)


def test_a_sampler_state_with_strides():
    ours, other = twins("crd")
    state = {key: value.clone() for key, value in ours.state_dict().items()}
    wide = torch.full((2, 3), 7)
    wide[:, 0] = state["contrast.sampler.state"]
    ours.load_state_dict(state | {"contrast.sampler.state": wide[:, 0]}, assign=True)
    assert_steps_agree(ours, other)
    assert torch.equal(wide[:, 1:], torch.full((2, 2), 7))


def test_uninitialised_bank_after_to_empty_is_named():
    ours, _ = twins("crd")
    ours.contrast.memory_v1.to("meta").to_empty(device="cpu")
    with pytest.raises(RuntimeError, match="MemoryBank: rows"):
        ours(*batch(1))


@pytest.mark.parametrize("name", ["crd", "wcord"])
def test_an_index_out_of_range_beside_explicit_rows_is_named_in_eval_mode(name):
    ours = twins(name)[0].eval()
    f_s, f_t, idx = batch(1)
    idx[2] = N
    with pytest.raises(ValueError, match=r"^idx"):
        ours(f_s, f_t, idx, torch.zeros(B, 6, dtype=torch.int64))


def test_explicit_rows_of_another_integer_are_a_type_error():
    ours, _ = twins("crd")
    with pytest.raises(TypeError, match="contrast_idx"):
        ours(*batch(1), torch.zeros(B, 6, dtype=torch.int64).to(torch.uint64))


@pytest.mark.parametrize("option", ["embed_t.norm", "contrast.memory_v2.momentum", "local.ot"])
def test_option_set_on_one_direction_is_followed(option):
    ours, other = twins("wcord sum" if option == "local.ot" else "crd")
    for loss in (ours, other):
        with torch.no_grad():  # short embeddings, for which the norms differ
            loss.embed_t.linear.weight.mul_(1e-3)
            loss.embed_t.linear.bias.mul_(1e-3)
        if option == "embed_t.norm":
            loss.embed_t.norm = "ball"
        elif option == "local.ot":
            loss.local.ot |= {"eps": 5.0, "iters": 2}
        else:
            loss.contrast.memory_v2.momentum = 0.99
    assert_steps_agree(ours, other)


@pytest.mark.parametrize("own_class", [True, False])
def test_custom_local_term_is_used(own_class):
    class Mine(LocalTerm):
        def forward(self, x, y, key):
            return 7 + x.square().mean()

    ours, other = twins("wcord")
    for loss in (ours, other):
        if own_class:
            loss.local.__class__ = Mine
        else:
            loss.local.forward = Mine.forward.__get__(loss.local)
    assert_steps_agree(ours, other)


@pytest.mark.parametrize(
    ("part", "base", "method"),
    [
        ("sampler", NegativeSampler, "advance"),
        ("memory_v1", MemoryBank, "update_"),
        ("memory_v2", MemoryBank, "update_"),
        ("", Contrast, "finish_step"),
    ],
)
def test_an_overridden_method_of_a_part_is_called(part, base, method):
    calls = []

    def counted(self, *args, **options):
        calls.append(1)
        return getattr(base, method)(self, *args, **options)

    ours, _ = twins("crd")
    module = getattr(ours.contrast, part) if part else ours.contrast
    module.__class__ = type("Mine", (base,), {method: counted})
    ours(*batch(1))
    assert calls == [1]


@pytest.mark.parametrize("kind", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_backward_hooks_of_the_local_term_see_the_weighted_gradient(kind):
    seen = []
    ours, _ = twins("wcord")
    getattr(ours.local, kind)(lambda module, *grads: seen.append(float(grads[-1][0])))
    loss = ours(*batch(1))
    assert seen == []
    (2 * loss).backward()
    assert seen == pytest.approx([2 * ours.lambda_lckt])


@pytest.mark.parametrize("second", ["embed_s.linear.bias", "embed_t.linear.bias", "embed_s.linear.weight"])
@pytest.mark.parametrize("name", ["crd", "wcord"])
def test_a_second_derivative_in_any_parameter_is_refused(name, second):
    ours, _ = twins(name)
    given = batch(1)
    loss = ours(*given)
    assert is_native(loss)
    (first,) = torch.autograd.grad(loss, given[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiated again"):
        torch.autograd.grad(first.sum(), ours.get_parameter(second), allow_unused=True)


@pytest.mark.parametrize("case", ["buffer", "inference", "weight"])
def test_tensors_not_needed_for_backward_may_change(case):
    ours, other = twins("crd")
    for loss in (ours, other):
        f_s, f_t, idx = batch(1)
        f_s, f_t = (f_s.detach(), f_t.detach()) if case == "weight" else (f_s, f_t.detach())
        loss.embed_t.requires_grad_(False)
        if case == "inference":
            with torch.inference_mode():
                f_t = f_t.clone()
        value = loss(f_s, f_t, idx)
        if case == "buffer":
            f_t.zero_()
        elif case == "weight":
            with torch.no_grad():
                loss.embed_s.linear.weight.mul_(1.1)
        value.backward()
    close(ours.embed_s.linear.weight.grad, other.embed_s.linear.weight.grad)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["crd", "wcord", "wcord pairs"])
def test_inference_mode(name, training):
    ours, other = (loss.train(training) for loss in twins(name))
    with torch.inference_mode():
        close(ours(*batch(1)), other(*batch(1)))


def test_terms_of_the_last_call_cannot_change_unseen():
    ours, _ = twins("wcord")
    factor = nn.Parameter(torch.ones(()))
    ours(*batch(1))
    product = factor * ours.terms["gckt"]
    ours(*batch(2))
    with pytest.raises(RuntimeError, match="inplace"):
        product.backward()


def test_terms_in_bfloat16_are_written():
    ours, _ = twins("wcord")
    ours.bfloat16()
    for embed in (ours.embed_s, ours.embed_t):
        embed.float()
    loss = ours(*batch(1))
    assert torch.isfinite(loss) and float(ours.terms["gckt"]) != 0


def test_a_ramped_loss_on_meta():
    ours, _ = twins("wcord")
    ours.ramp(gckt=0.5)
    assert ours.to("meta")(*(t.detach().to("meta") for t in batch(1))).is_meta
