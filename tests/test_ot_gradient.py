"""The gradient of <P, C> is that of a detached plan, exactly, in every dtype and for any grad_output."""

import pytest
import torch

from tests import ot_oracles as oracle
from wcord_fast import functional as F

pytestmark = pytest.mark.usefixtures("each_ot_backend")

CASES = [(cost, solver) for cost in ("cosine", "sqeuclidean") for solver in ("ipot", "sinkhorn")]


def pair(seed=0, n=7, m=5, d=4, g=None, dtype=torch.float64):
    lead = () if g is None else (g,)
    return (oracle.features(seed, *lead, n, d).to(dtype), oracle.features(seed + 1, *lead, m, d).to(dtype))


def envelope(x, y, **kwargs):
    """Gradients of <P, C(x, y)> by autograd, with the plan held fixed."""
    x, y = x.detach().clone().requires_grad_(), y.detach().clone().requires_grad_()
    plan = F.ot_plan(x, y, **kwargs)
    assert not plan.requires_grad
    return torch.autograd.grad((plan * oracle.torch_cost(x, y, kwargs["cost"])).sum(), (x, y))


@pytest.mark.parametrize(("cost", "solver"), CASES)
@pytest.mark.parametrize("g", [None, 3])
@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_gradient_equals_autograd_with_the_plan_detached(cost, solver, g, offset):
    x, y = (t + offset for t in pair(g=g))
    kwargs = {
        "cost": cost,
        "solver": solver,
        "iters": 7,
        "a": oracle.masses(2, 7, zeros=[3]),
        "b": oracle.masses(3, 5),
    }
    x.requires_grad_(), y.requires_grad_()
    F.ot_cost(x, y, **kwargs).sum().backward()
    for ours, expected in zip((x.grad, y.grad), envelope(x, y, **kwargs), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-13)
    assert (x.grad[..., 3, :] == 0).all()  # no mass, no gradient


@pytest.mark.parametrize("cost", ["cosine", "sqeuclidean"])
def test_only_required_gradients_are_returned_and_equal_the_joint_ones(cost):
    x, y = pair(seed=4)
    both = torch.autograd.grad(F.ot_cost(x.requires_grad_(), y.requires_grad_(), cost=cost), (x, y))
    for i in range(2):
        leaves = [x.detach().clone(), y.detach().clone()]
        leaves[i].requires_grad_()
        F.ot_cost(*leaves, cost=cost).backward()
        assert torch.equal(leaves[i].grad, both[i])
        assert leaves[1 - i].grad is None
    with torch.no_grad():
        assert not F.ot_cost(x, y, cost=cost).requires_grad


@pytest.mark.parametrize("cost", ["cosine", "sqeuclidean"])
def test_one_tensor_as_x_and_y_gets_both_gradients(cost):
    x, kwargs = pair(seed=6)[0], {"cost": cost, "solver": "sinkhorn", "iters": 3}
    joint = torch.autograd.grad(F.ot_cost(x.requires_grad_(), x, **kwargs), x)[0]
    left, right = envelope(x, x, **kwargs)
    torch.testing.assert_close(joint, left + right, rtol=1e-10, atol=1e-13)


def test_contiguous_expanded_and_sliced_grad_output():
    x, y = pair(seed=8, g=4)
    x.requires_grad_()
    cost = F.ot_cost(x, y)
    weights = torch.tensor([2.0, -1.0, 0.5, 3.0], dtype=torch.float64)
    spread = torch.stack([weights, weights], 1)[:, 0]  # stride 2
    assert not spread.is_contiguous()
    outs = [
        torch.autograd.grad(cost, x, go, retain_graph=True)[0]
        for go in (weights, spread, torch.ones(1, dtype=torch.float64).expand(4))
    ]
    assert torch.equal(outs[0], outs[1])
    torch.testing.assert_close(outs[0], outs[2] * weights[:, None, None], rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", ["cost", "dual"])
def test_narrow_inputs_accumulate_in_float32(dtype, value):
    x, y = (t.requires_grad_() for t in pair(seed=10, n=40, m=30, dtype=dtype))
    x32, y32 = (t.detach().float().requires_grad_() for t in (x, y))
    ours, expected = (F.ot_cost(*xy, solver="sinkhorn", value=value) for xy in ((x, y), (x32, y32)))
    assert ours.dtype == torch.float32 and torch.equal(ours, expected)
    ours.backward()
    expected.backward()
    for grad, wide in ((x.grad, x32.grad), (y.grad, y32.grad)):
        assert grad.dtype == dtype
        assert torch.equal(grad, wide.to(dtype))


def test_loss_scaling_rescues_half_gradients_from_underflow():
    """Gradients of long rows are subnormal in fp16: rounded before the scale is applied they lose their digits."""
    x, y = pair(seed=12, n=32, m=32, d=8, dtype=torch.float16)
    x, scale = (4096 * x).requires_grad_(), 2.0**15
    wide = x.detach().float().requires_grad_()
    (exact,) = torch.autograd.grad(F.ot_cost(wide, y.float()), wide)
    assert exact.abs().max() < torch.finfo(torch.float16).smallest_normal
    expected = (exact * scale).half()
    assert not torch.equal(exact.half() * scale, expected)
    assert torch.equal(torch.autograd.grad(F.ot_cost(x, y) * scale, x)[0], expected)


def test_the_backward_pass_cannot_be_differentiated():
    x, y = pair(seed=14)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(F.ot_cost(x, y), x, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        grad.square().sum().backward()
    penalised = F.ot_cost(x, y)
    (grad,) = torch.autograd.grad(penalised, x, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        (penalised + grad.norm()).backward()


@pytest.mark.parametrize("batch", [(), (3,)])
def test_the_value_may_be_changed_in_place(batch):
    x, y = oracle.features(3, *batch, 5, 4).requires_grad_(), oracle.features(4, *batch, 6, 4)
    cost = F.ot_cost(x, y)
    expected = torch.autograd.grad(3 * cost.sum(), x, retain_graph=True)
    cost *= 3
    cost += 1
    assert torch.equal(torch.autograd.grad(cost.sum(), x)[0], expected[0])


class _Silent(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, _):
        return None


def test_no_gradient_of_the_value_is_no_gradient_of_the_features():
    x, y = oracle.features(3, 5, 4).requires_grad_(), oracle.features(4, 6, 4)
    assert torch.autograd.grad(_Silent.apply(F.ot_cost(x, y)), x, allow_unused=True) == (None,)


def test_only_the_gradients_are_kept_for_backward():
    x, y = pair(seed=16, n=50, m=40, d=3)
    kept = []

    def pack(t):
        kept.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        F.ot_cost(x.requires_grad_(), y, cost="sqeuclidean")
    assert sum(kept) == x.numel()


def test_gradient_descent_lowers_the_cost():
    x, y = pair(seed=18, n=16, m=16, d=8)
    x.requires_grad_()
    costs = []
    for _ in range(20):
        cost = F.ot_cost(x, y)
        costs.append(cost.item())
        x.grad = None
        cost.backward()
        with torch.no_grad():
            x -= 2.0 * x.grad
    assert costs[-1] < 0.7 * costs[0]
