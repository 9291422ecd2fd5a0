"""The critic's linear map against torch's own spectral norm in float64, and under what users do to a module."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.nn.utils.parametrizations import spectral_norm

from wcord_fast.nn.embed import Embed
from wcord_fast.nn.linear import CriticLinear

WIDE, NARROW, BATCH = 9, 6, 4


def pair(seed=0):
    """Our layer and torch's with equal weights and vectors, in float64."""
    torch.manual_seed(seed)
    ours = CriticLinear(WIDE, NARROW, spectral=True).double()
    theirs = spectral_norm(torch.nn.Linear(WIDE, NARROW)).double()
    theirs.load_state_dict(as_torch_names(ours.state_dict()))
    return ours, theirs


def as_torch_names(state, prefix=""):
    names = {"weight": "original", "u": "0._u", "v": "0._v"}
    state = {k.removeprefix(prefix): v for k, v in state.items()}
    return {
        f"{prefix}parametrizations.weight.{names[k]}" if k in names else f"{prefix}{k}": v.clone()
        for k, v in state.items()
    }


def test_equals_torch_over_training_and_eval():
    ours, theirs = pair()
    for step in range(6):
        for module in (ours, theirs):
            module.train(step != 3)
        x, g = torch.randn(BATCH, WIDE).double(), torch.randn(BATCH, NARROW).double()
        a, b = ours(x), theirs(x)
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
        (a * g).sum().backward()
        (b * g).sum().backward()
        original = theirs.parametrizations.weight.original
        torch.testing.assert_close(ours.weight.grad, original.grad, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(ours.u, theirs.parametrizations.weight[0]._u, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(ours.v, theirs.parametrizations.weight[0]._v, rtol=1e-12, atol=1e-14)
        with torch.no_grad():
            for weight in (ours.weight, original):
                weight -= 0.3 * weight.grad
                weight.grad = None


def test_initial_vectors_equal_torchs_for_a_seed():
    torch.manual_seed(3)
    ours = CriticLinear(WIDE, NARROW, spectral=True)
    torch.manual_seed(3)
    theirs = spectral_norm(torch.nn.Linear(WIDE, NARROW))
    for name, value in as_torch_names(ours.state_dict()).items():
        assert torch.equal(value, theirs.state_dict()[name]), name


def test_gradients_after_two_forwards_equal_torch():
    ours, theirs = pair()
    x, y = torch.randn(2, BATCH, WIDE).double()
    for module in (ours, theirs):
        first = module(x)
        (first.square() - module.eval()(y) + module.train()(y)).sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.parametrizations.weight.original.grad)


def test_states_of_torchs_parametrization_and_plain_weights_load():
    ours, theirs = pair()
    theirs(torch.randn(BATCH, WIDE).double())
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours.frozen()[0], theirs.eval().weight.detach())
    plain = torch.nn.Linear(WIDE, NARROW).double()
    ours.load_state_dict(plain.state_dict())
    weight = plain.weight.detach()
    torch.testing.assert_close(ours.frozen()[0], weight / torch.linalg.matrix_norm(weight, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_parameters_are_computed_with_in_fp32(dtype):
    ours, _ = pair()
    ours = ours.float().to(dtype)
    assert ours.u.dtype == ours.v.dtype == torch.float32
    reference = copy.deepcopy(ours).float()
    x = torch.randn(BATCH, WIDE).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        a = Embed(WIDE, NARROW, spectral=True)
        a.linear = ours
        b = Embed(WIDE, NARROW, spectral=True)
        b.linear = reference
        assert torch.equal(a(x), b(x.float()))
    assert torch.equal(ours.u, reference.u)
    a(x).sum().backward()
    assert ours.weight.grad.dtype == dtype


@pytest.mark.parametrize("frozen_too", [False, True])
def test_copies_pickles_and_compiled_code(frozen_too):
    torch.manual_seed(1)
    embed = Embed(WIDE, NARROW, spectral=True, norm="ball")
    twins = [copy.deepcopy(embed), pickle.loads(pickle.dumps(embed))]
    compiled = torch.compile(copy.deepcopy(embed), fullgraph=True, backend="aot_eager")
    for module in (embed, compiled, *twins):
        for step in range(3):
            x = torch.randn(BATCH, WIDE, generator=torch.Generator().manual_seed(step))
            z = module(x, frozen_too)
            (z[0] + z[1] if frozen_too else z).sum().backward()
    for module in (compiled, *twins):
        for (name, value), other in zip(embed.named_buffers(), module.buffers(), strict=True):
            torch.testing.assert_close(other, value, msg=name)
        for ours, other in zip(embed.parameters(), module.parameters(), strict=True):
            torch.testing.assert_close(other.grad, ours.grad)


def test_one_training_forward_makes_one_power_iteration():
    ours, _ = pair()
    twin = copy.deepcopy(ours)
    x = torch.randn(BATCH, WIDE).double()
    a, frozen = ours(x, True)
    assert torch.equal(a, twin(x)) and torch.equal(a, frozen) and torch.equal(ours.u, twin.u)
    assert not frozen.requires_grad and a.requires_grad
    before = ours.u.clone()
    ours.frozen()
    ours.eval()(x)
    assert torch.equal(ours.u, before)


def test_a_reset_equals_a_new_one():
    torch.manual_seed(5)
    made = Embed(WIDE, NARROW, spectral=True)
    with torch.device("meta"):
        other = Embed(WIDE, NARROW, spectral=True)
    other.to_empty(device="cpu")
    with pytest.raises(RuntimeError, match=r"CriticLinear: u, v hold no values since to_empty; call reset_parameters"):
        other(torch.ones(1, WIDE))
    torch.manual_seed(5)
    other.reset_parameters()
    assert all(torch.equal(a, b) for a, b in zip(made.state_dict().values(), other.state_dict().values(), strict=True))
    other(torch.ones(1, WIDE))


def test_an_optimizer_s_state_of_torch_s_parametrization_loads():
    """Optimisers know parameters by their order, so the order of a run begun with an earlier version is kept."""
    theirs, ours = spectral_norm(torch.nn.Linear(5, 3)), CriticLinear(5, 3, spectral=True)
    for module in (theirs, ours):
        assert [tuple(p.shape) for p in module.parameters()] == [(3,), (3, 5)]
    old, new = (torch.optim.SGD(module.parameters(), 0.1, momentum=0.9) for module in (theirs, ours))
    x = torch.randn(4, 5)
    theirs(x).square().sum().backward()
    old.step()
    new.load_state_dict(copy.deepcopy(old.state_dict()))
    ours.load_state_dict(theirs.state_dict())
    for module, optimizer in ((theirs, old), (ours, new)):
        optimizer.zero_grad()
        module(x).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.parametrizations.weight.original)
    torch.testing.assert_close(ours.bias, theirs.bias)
    assert [n for n, _ in copy.deepcopy(ours).to("meta").named_parameters()] == ["bias", "weight"]
