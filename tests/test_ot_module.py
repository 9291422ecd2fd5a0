"""OTLoss holds options and adds a reduction to ot_cost."""

import pytest
import torch

from tests import ot_oracles as oracle
from wcord_fast import functional as F
from wcord_fast.nn import OTLoss

X, Y = oracle.features(0, 3, 6, 4), oracle.features(1, 3, 5, 4)


def test_mean_over_the_batch_and_sum_over_rows():
    a, b = oracle.masses(2, 6), oracle.masses(3, 3, 5)
    cost = F.ot_cost(X, Y, a=a, b=b)
    assert torch.equal(OTLoss()(X, Y, a, b), cost.mean())
    assert torch.equal(OTLoss(reduction="sum")(X, Y, a=a, b=b), cost.mean() * 6)
    assert OTLoss(reduction="sum")(X[0], Y[0]).item() == pytest.approx(6 * F.ot_cost(X[0], Y[0]).item())


def test_options_reach_the_solver():
    options = {
        "cost": "sqeuclidean",
        "solver": "sinkhorn",
        "eps": 2.0,
        "iters": 30,
        "tol": 1e-3,
        "value": "dual",
        "debias": True,
    }
    assert torch.equal(
        OTLoss(**options, backend="reference")(X, Y), F.ot_cost(X, Y, **options, backend="reference").mean()
    )
    for name, other in {"cost": "cosine", "eps": 1.0, "iters": 1, "value": "cost", "debias": False}.items():
        assert not torch.equal(OTLoss(**{**options, name: other})(X, Y), OTLoss(**options)(X, Y)), name


def test_gradient_and_state():
    loss, x = OTLoss(reduction="sum"), X.clone().requires_grad_()
    loss(x, Y).backward()
    expected = torch.autograd.grad(F.ot_cost(x, Y).mean() * 6, x)[0]
    torch.testing.assert_close(x.grad, expected)
    assert not loss.state_dict() and not list(loss.parameters())


def test_repr_shows_every_option():
    text = repr(OTLoss(solver="sinkhorn", tol=1e-3, reduction="sum"))
    for part in (
        "cost='cosine'",
        "solver='sinkhorn'",
        "eps=0.05",
        "iters=50",
        "tol=0.001",
        "value='cost'",
        "reduction='sum'",
    ):
        assert part in text
    assert "debias=False" in text and "backend='auto'" in text


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"reduction": "avg"}, "reduction: .*'mean', 'sum'.*'avg'"),
        ({"eps": 0}, "eps: .*positive"),
        ({"value": "dual"}, "value='dual'.*sinkhorn"),
        ({"solver": "ipop"}, "did you mean 'ipot'"),
    ],
)
def test_bad_options_are_refused_at_construction(options, pattern):
    with pytest.raises(ValueError, match=pattern):
        OTLoss(**options)
