"""Derivatives other than a backward pass are refused in our words, by every function and loss that has a kernel."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from wcord_fast import CRDLoss, KDLoss, MemoryBank, NegativeSampler, OTLoss, WCoRDLoss
from wcord_fast import functional as F

N, D, B = 20, 5, 4
INDEX = torch.arange(B)


def problem():
    g = torch.Generator().manual_seed(0)
    return torch.randn(B, D, generator=g), torch.randn(B, D, generator=g)


def calls():
    """name -> (the call as a function of x, the state that it may not change)"""
    y, bank, sampler = problem()[1], MemoryBank(N, D, seed=1), NegativeSampler(N, 3, seed=0)
    crd, wcord = CRDLoss(D, D, N, nce_k=3, seed=0), WCoRDLoss(D, D, N, num_negatives=3, seed=0)
    args = {"negatives": sampler}
    return {
        "ot_cost": (lambda x: F.ot_cost(x, y, iters=5), sampler),
        "ot_solve": (lambda x: F.ot_solve(x, y, iters=5).cost, sampler),
        "ot_plan": (lambda x: F.ot_plan(x, y, iters=5).sum(), sampler),
        "ot_cost_from_matrix": (lambda x: F.ot_cost_from_matrix(x.square(), iters=5), sampler),
        "OTLoss": (lambda x: OTLoss(iters=5)(x, y), sampler),
        "bank_nce": (lambda x: F.bank_nce(x, bank, INDEX, log_z=1.0, **args).sum(), bank),
        "bank_infonce": (lambda x: F.bank_infonce(x, bank, INDEX, positive=x, **args).sum(), bank),
        "bank_sigmoid": (lambda x: F.bank_sigmoid(x, bank, INDEX, positive=x, **args).sum(), bank),
        "bank_mean_score": (lambda x: F.bank_mean_score(x, bank.rows, INDEX, **args).sum(), bank),
        "batch_infonce": (lambda x: F.batch_infonce(x, y).sum(), sampler),
        "batch_sigmoid": (lambda x: F.batch_sigmoid(y, y, scale=x.sum()).sum(), sampler),
        "bank_log_z": (lambda x: F.bank_log_z(x, bank, INDEX, **args), bank),
        "bank_update_": (lambda x: F.bank_update_(bank, INDEX, x).rows.sum(), bank),
        "NegativeSampler.draw": (lambda x: sampler.draw(INDEX).sum() * x.sum(), sampler),
        "CRDLoss": (lambda x: crd(x, y, INDEX), crd),
        "WCoRDLoss": (lambda x: wcord(x, y, INDEX), wcord),
        "ContrastiveLoss.init_banks": (lambda x: crd.init_banks(x, y, INDEX), crd),
    }


TRANSFORMS = {
    "grad": lambda f, x: grad(f)(x),
    "vjp": lambda f, x: vjp(f, x),
    "jvp": lambda f, x: jvp(f, (x,), (x,)),
    "jacrev": lambda f, x: jacrev(f)(x),
    "jacfwd": lambda f, x: jacfwd(f)(x),
    "hessian": lambda f, x: hessian(f)(x),
    "vmap": lambda f, x: vmap(f)(x[None]),
}


def state_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", calls())
def test_transforms_are_refused_by_the_name_that_was_called(name, transform):
    call, module = calls()[name]
    before = state_of(module)
    with pytest.raises(NotImplementedError, match=rf"^{name}: the transforms of torch.func .* backward\(\)"):
        TRANSFORMS[transform](call, problem()[0])
    assert all(torch.equal(v.nan_to_num(), before[k].nan_to_num()) for k, v in state_of(module).items())


@pytest.mark.parametrize("name", sorted(set(calls()) - {"NegativeSampler.draw"}))  # which takes integers only
def test_tangents_are_refused(name):
    call, module = calls()[name]
    x, before = problem()[0], state_of(module)
    with forward_ad.dual_level():
        call(x)  # nothing to differentiate
        before = state_of(module)
        with pytest.raises(NotImplementedError, match=rf"^{name}: forward-mode differentiation .* backward\(\)"):
            call(forward_ad.make_dual(x, x))
    assert all(torch.equal(v.nan_to_num(), before[k].nan_to_num()) for k, v in state_of(module).items())


@pytest.mark.parametrize("name", ["CRDLoss", "WCoRDLoss"])
def test_the_tangent_of_a_parameter_is_refused(name):
    loss, (x, y) = calls()[name][1], problem()
    bias = loss.embed_s.linear.bias.detach()
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=f"^{name}: forward-mode"):
        functional_call(loss, {"embed_s.linear.bias": forward_ad.make_dual(bias, bias)}, (x, y, INDEX))


@pytest.mark.parametrize("mass", ["a", "b"])
def test_the_tangent_of_a_mass_is_refused(mass):
    x, y = problem()
    uniform = torch.full((B,), 1 / B)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=r"^ot_cost: forward-mode"):
        F.ot_cost(x, y, **{mass: forward_ad.make_dual(uniform, uniform)}, value="dual", solver="sinkhorn")


@pytest.mark.parametrize("loss", [CRDLoss(D, D, N, nce_k=3, seed=0), WCoRDLoss(D, D, N, num_negatives=3, seed=0)])
def test_functional_call_works(loss):
    x, y = problem()
    loss.eval()
    expected = loss(x, y, INDEX)
    given = {k: v.detach().clone().requires_grad_() for k, v in loss.named_parameters()}
    value = functional_call(loss, given, (x, y, INDEX))
    assert torch.equal(value, expected)
    ours = torch.autograd.grad(value, [given[k] for k, _ in loss.named_parameters() if k.startswith("embed_s")])
    own = torch.autograd.grad(expected, [v for k, v in loss.named_parameters() if k.startswith("embed_s")])
    assert all(map(torch.equal, ours, own))
    assert torch.equal(functional_call(OTLoss(), {}, (x, y)), F.ot_cost(x, y))


def test_second_derivative_raises_the_same_error_as_transforms():
    x, y = problem()
    (g,) = torch.autograd.grad(F.ot_cost(x.requires_grad_(), y), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"cannot be differentiated again: .* backward\(\)"):
        g.sum().backward()


def test_kd_supports_all_transforms():
    x, y = problem()
    kd = KDLoss()
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(kd(leaf, y), leaf)
    torch.testing.assert_close(grad(kd)(x, y), expected)
    value, tangent = jvp(lambda x: kd(x, y), (x,), (y,))
    torch.testing.assert_close(value, kd(x, y))
    torch.testing.assert_close(tangent.float(), (expected * y).sum())
    torch.testing.assert_close(vmap(kd)(torch.stack((x, y)), torch.stack((y, y))), torch.stack((kd(x, y), kd(y, y))))


@pytest.mark.parametrize("transformed", [False, True])
def test_compiled_functions_refuse_transforms(transformed):
    x, y = problem()

    def step(x):
        return F.ot_cost(x, y, iters=5)

    compiled = torch.compile(grad(step) if transformed else step, backend="aot_eager")
    if transformed:
        with pytest.raises(NotImplementedError, match=r"^ot_cost: the transforms"):
            compiled(x)
    else:
        assert torch.equal(compiled(x), step(x))
