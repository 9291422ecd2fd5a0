"""A second derivative is refused wherever the first gradient may flow: the term never vanishes in silence."""

import pytest
import torch

from wcord_fast import MemoryBank, NegativeSampler
from wcord_fast import functional as F

N, D, B = 20, 5, 4


def _calls():
    g = torch.Generator().manual_seed(0)
    y = torch.randn(6, D, generator=g)
    bank, index = torch.randn(N, D, generator=g), torch.arange(B)
    sampler = NegativeSampler(N, 5, seed=0)
    return {
        "ot_cost": lambda h: F.ot_cost(h, y, iters=5),
        "ot_cost, y": lambda h: F.ot_cost(y, h, iters=5),
        "ot_cost, self": lambda h: F.ot_cost(h, h, iters=5),
        "debias": lambda h: F.ot_cost(h, y, iters=5, debias=True),
        "a": lambda h: F.ot_cost(y[:B], y, a=h[:, 0].softmax(0), solver="sinkhorn", value="dual"),
        "b": lambda h: F.ot_cost(y, y[:B], b=h[:, 0].softmax(0), solver="sinkhorn", value="dual"),
        "bank_nce": lambda h: F.bank_nce(h, bank, index, negatives=sampler, log_z=3.0).sum(),
        "batch_infonce": lambda h: F.batch_infonce(h, y[:B]).sum(),
        "batch_infonce, y": lambda h: F.batch_infonce(y[:B], h).sum(),
        "batch_sigmoid": lambda h: F.batch_sigmoid(h, y[:B], scale=h.sum()).sum(),
        "bank_infonce": lambda h: F.bank_infonce(h, bank, index, negatives=sampler).sum(),
        "bank_infonce, positive": lambda h: F.bank_infonce(bank[:B], bank, index, positive=h, negatives=sampler).sum(),
        "bank_sigmoid, scale": lambda h: F.bank_sigmoid(
            bank[:B], bank, index, scale=h[0, 0] * h[1, 1] / 9 + 1, negatives=sampler
        ).sum(),
        "bank_mean_score": lambda h: F.bank_mean_score(h, bank, index, negatives=sampler).sum(),
    }


@pytest.mark.parametrize("name", _calls())
def test_double_backward_is_refused_naming_the_input(name):
    x, w = torch.randn(B, 3, generator=torch.Generator().manual_seed(1)), torch.ones(D, 3, requires_grad=True)
    h = x @ w.T + torch.arange(D) ** 2
    (g,) = torch.autograd.grad(_calls()[name](h), h, create_graph=True)
    penalised = g.pow(2).sum() + (w**2).sum()
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(penalised, [w], retain_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        penalised.backward(inputs=[w])


@pytest.mark.parametrize("name", _calls())
def test_a_hessian_is_refused(name):
    h = torch.randn(B, D, generator=torch.Generator().manual_seed(1))
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.functional.hessian(_calls()[name], h)


@pytest.mark.parametrize("name", _calls())
def test_a_mixed_derivative_with_the_output_s_weight_is_refused(name):
    h = torch.randn(B, D, generator=torch.Generator().manual_seed(1)).requires_grad_()
    weight = torch.tensor(2.0, requires_grad=True)
    (g,) = torch.autograd.grad(weight * _calls()[name](h), h, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(g.sum(), weight)


def test_the_mean_of_the_whole_pool_is_linear_and_may_be_differentiated_again():
    bank, index = MemoryBank(N, D, seed=1), torch.arange(B)
    negatives = NegativeSampler(N, "all", seed=0)

    def cubed(h):
        return F.bank_mean_score(h, bank, index, negatives=negatives).pow(3).sum()

    h = torch.randn(B, D, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.functional.hessian(cubed, h).abs().max() > 0
    assert torch.autograd.gradgradcheck(cubed, h.double().requires_grad_())


def test_the_graph_holds_no_input_and_an_input_may_be_overwritten():
    x = torch.randn(B, D, requires_grad=True)
    h = x * 1.0
    cost = F.ot_cost(h, torch.randn(6, D), iters=5)
    h.detach().zero_()
    cost.backward()
    assert x.grad.abs().sum() > 0
