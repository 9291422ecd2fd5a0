"""A user's own critic: by decorator, and by dotted path in the loss and in the command."""

from __future__ import annotations

import pytest
import torch

from wcord_fast import WCoRDLoss, nn
from wcord_fast.nn import own_critic

from .outside import command, package_outside

B, N, D, S_DIM, T_DIM, K = 6, 40, 8, 7, 9, 5
LABELS = torch.arange(N) % 4

MINE = """
import torch


def softmax(positive, negative):
    scores = torch.cat((positive[..., None], negative), -1) / 0.07
    return scores[..., 0] - scores.logsumexp(-1)


def wrong(positive, negative):
    return negative.mean(-1).sum()
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    yield from package_outside(tmp_path, monkeypatch, MINE, own_critic.OWN)


def loss_module(critic, **options):
    torch.manual_seed(0)
    sizes = {"feat_dim": D, "num_negatives": K, "labels": LABELS, "seed": 1, "lambda_lckt": 0.0}
    return WCoRDLoss(S_DIM, T_DIM, N, critic=critic, **sizes, **options)


def batch(seed=0):
    g = torch.Generator().manual_seed(seed)
    f_s, f_t = (torch.randn(B, dim, generator=g) for dim in (S_DIM, T_DIM))
    return f_s.requires_grad_(), f_t, torch.randperm(N, generator=g)[:B]


def test_custom_softmax_critic_equals_the_formula_over_drawn_rows(package):
    loss = loss_module("my_package.mine.softmax", embed_norm="ball").double()
    for seed in range(3):
        f_s, f_t, idx = batch(seed)
        leaf = f_s.detach().double().requires_grad_()
        banks = loss.contrast.memory_v2.rows.clone(), loss.contrast.memory_v1.rows.clone()
        rows = torch.cat((idx[:, None], loss.contrast.sampler.draw(idx)), 1)
        value = loss(leaf, f_t.double(), idx)
        (grad,) = torch.autograd.grad(value, leaf)
        twin = leaf.detach().requires_grad_()
        terms = []
        for embed, f, bank in ((loss.embed_s, twin, banks[0]), (loss.embed_t, f_t.double(), banks[1])):
            weight, bias = embed.linear.frozen()  # with the vectors that this step has moved
            z = f @ weight.T + bias
            z = z / z.norm(dim=1, keepdim=True).clamp_min(1)
            scores = torch.stack([bank[r] @ z[b] for b, r in enumerate(rows)]) / 0.07
            terms.append(torch.nn.functional.cross_entropy(scores, torch.zeros(B, dtype=torch.long)))
        expected = 0.8 * (terms[0] + terms[1])
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(grad, torch.autograd.grad(expected, twin)[0])
        assert not torch.equal(loss.contrast.memory_v1.rows, banks[1])


def test_given_rows_are_scored_and_eval_changes_nothing(package):
    loss = loss_module("my_package.mine.softmax").eval()
    f_s, f_t, idx = batch()
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    drawn = torch.cat((idx[:, None], loss.contrast.sampler.draw(idx)), 1)
    torch.testing.assert_close(loss(f_s, f_t, idx), loss(f_s, f_t, idx, drawn))
    assert all(
        torch.equal(value.nan_to_num(7), before[name].nan_to_num(7)) for name, value in loss.state_dict().items()
    )


def test_registered_name_serves_like_a_built_in(package):
    @nn.register_critic("hinge")
    def hinge(positive, negative):
        return -(1 + negative - positive[..., None]).relu().mean(-1)

    assert loss_module("hinge")(*batch()).isfinite()
    with pytest.raises(ValueError, match="'hinge' is taken"):
        nn.register_critic("hinge")(lambda positive, negative: positive)
    for name in ("dual", "Not A Name"):
        with pytest.raises(ValueError, match="name"):
            nn.register_critic(name)(hinge)


@pytest.mark.parametrize(
    ("critic", "options", "message"),
    [
        ("my_package.nothing", {}, r"critic: 'my_package\.nothing' cannot be imported"),
        ("hinges", {}, "critic: .*'hinges'"),
        ("my_package.mine.softmax", {"num_negatives": "all"}, "critic: .* which num_negatives='all' does not allow"),
        ("my_package.mine.softmax", {"shard": "rank"}, "critic: .* which shard='rank' does not allow"),
        ("my_package.mine.softmax", {"negatives": "queue"}, "negatives: 'queue' needs critic="),
    ],
)
def test_bad_critics_and_options_are_refused(package, critic, options, message):
    with pytest.raises(ValueError, match=message):
        WCoRDLoss(S_DIM, T_DIM, N, critic=critic, **options)


def test_critic_result_of_wrong_shape_is_named(package):
    with pytest.raises(ValueError, match=r"critic: expected my_package\.mine\.wrong to give \[2, 6\], got \[\]"):
        loss_module("my_package.mine.wrong")(*batch())


def test_the_command_trains_with_it(package, tmp_path):
    small = ["--data=digits", "--image-size=8", "--limit-train=64", "--epochs=1", "--teacher-epochs=1", "--threads=1"]
    own = ["--teacher=resnet8", "--student=resnet8", "--methods=ce,wcord", "--wcord.critic=my_package.mine.softmax"]
    done = command(package, *small, *own, f"--output-dir={tmp_path}/out")
    assert done.returncode == 0, done.stderr
