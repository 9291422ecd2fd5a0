"""lckt_center="running": the mean against a float64 oracle, the steps that move it, and its state dict."""

import copy

import pytest
import torch

from tests.test_wcord import LABELS, S_DIM, N, batch, loss_module
from wcord_fast import WCoRDLoss
from wcord_fast import functional as F

ALONE = {"lambda_gckt": 0.0, "lambda_lckt": 1.0, "lckt_center": "running"}


def module_of(**options) -> WCoRDLoss:
    options = {**ALONE, "lckt_features": "raw", "lckt_pairs": "only", "labels": LABELS, **options}
    torch.manual_seed(1)
    return WCoRDLoss(S_DIM, S_DIM, N, **options).double()


def features(step=0):
    f_s, f_t, idx = batch(step)
    return (f_s + 3 + step).requires_grad_(), f_t[:, :S_DIM].clone() - 2, idx


def oracle_means(means, momentum):
    """The running mean after each of the batches, whose own means are `means`, as a sum of weighted means."""
    weights, averages = [], []
    for t, _ in enumerate(means, 1):
        fraction = min(momentum, (t - 1) / t)
        weights = [w * fraction for w in weights] + [1 - fraction]
        averages.append(sum(w * m for w, m in zip(weights, means, strict=False)))
        assert sum(weights) == pytest.approx(1)
    return averages


@pytest.mark.parametrize("momentum", [0.0, 0.6, 0.9, 1.0])
def test_training_batches_are_centred_by_the_running_mean_which_is_a_constant(momentum):
    module = module_of(lckt_center_momentum=momentum)
    steps = [features(step) for step in range(6)]
    means = [oracle_means([f[side].detach().mean(0) for f in steps], momentum) for side in (0, 1)]
    for t, (f_s, f_t, idx) in enumerate(steps):
        loss = module(f_s, f_t, idx)
        expected = 1 - torch.cosine_similarity(f_s - means[0][t], f_t - means[1][t]).mean()
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(*(torch.autograd.grad(value, f_s)[0] for value in (loss, expected)))
        torch.testing.assert_close(module.local.running.mean, torch.stack((means[0][t], means[1][t])))
    assert int(module.local.running.steps) == len(steps)
    if momentum == 1:
        everyone = torch.stack([f_s.detach().mean(0) for f_s, _, _ in steps])
        torch.testing.assert_close(module.local.running.mean[0], everyone.mean(0))


def test_the_plan_sees_the_centred_features_and_the_pairs():
    module = module_of(lckt_pairs="prior", lckt_rho=0.7, ot_solver="sinkhorn", ot_eps=0.1)
    f_s, f_t, idx = features()
    module(*features(1))
    center = 0.5 * torch.stack(
        [(a.mean(0) + b.mean(0)).detach() for a, b in zip(features(1)[:2], (f_s, f_t), strict=True)]
    )
    expected = F.ot_cost(f_s - center[0], f_t - center[1], solver="sinkhorn", eps=0.1, pairs=(idx, idx), rho=0.7)
    torch.testing.assert_close(module(f_s, f_t, idx), expected)


def test_only_a_completed_training_step_moves_the_mean():
    options = {"lambda_gckt": 0.5, "num_negatives": 9, "lckt_pairs": "prior", "ot_solver": "sinkhorn"}
    module = module_of(**options)
    f_s, f_t, idx = features()
    own = module.eval()(f_s, f_t, idx)  # before the first step: the batch's own mean
    assert int(module.local.running.steps) == 0
    torch.testing.assert_close(own, module_of(**options, lckt_center="batch").eval()(f_s, f_t, idx))
    module.train()(f_s, f_t, idx)
    before = copy.deepcopy(module.state_dict())
    module.eval()(*features(1))
    module.train().lckt_on_pairs(*features(1))
    for bad in (f_s * torch.inf, f_s[:, :3]):
        with pytest.raises(ValueError):
            module(bad, f_t, idx)
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


def test_refused_step_leaves_the_mean():
    module = loss_module(lckt_center="running", lambda_lckt=1.0)
    f_s, f_t, idx = batch()
    module(f_s, f_t, idx)
    before = copy.deepcopy(module.state_dict())
    module.contrast.update_ = refuse
    with pytest.raises(ArithmeticError):
        module(*batch(1))
    assert int(module.local.running.steps) == 1
    assert torch.equal(module.local.running.mean, before["local.running.mean"])


def refuse(*_):
    raise ArithmeticError


def test_native_step_moves_the_mean_once(monkeypatch):
    native, long_way = (loss_module(lckt_center="running", lambda_lckt=2.0, lckt_pairs="only") for _ in range(2))
    monkeypatch.setattr(long_way, "_native", lambda *_: None)
    for step in range(3):
        torch.testing.assert_close(native(*batch(step)), long_way(*batch(step)))
        assert int(native.local.running.steps) == step + 1
    for key, value in native.state_dict().items():
        torch.testing.assert_close(value, long_way.state_dict()[key], msg=key)


@pytest.mark.parametrize("features", ["embed", "mapped"])
def test_mean_has_the_width_of_the_compared_features(features):
    module = loss_module(**ALONE, lckt_features=features, lckt_pairs="only")
    f_s, f_t, idx = batch()
    loss = module(f_s, f_t, idx)
    x, y = (module.local.map(f_s), f_t) if features == "mapped" else (module.embed_s(f_s), module.embed_t.eval()(f_t))
    assert module.local.running.mean.shape == (2, y.shape[1])
    torch.testing.assert_close(module.local.running.mean[1], y.mean(0).detach())
    if features == "mapped":
        torch.testing.assert_close(loss, 1 - torch.cosine_similarity(x - x.mean(0), y - y.mean(0)).mean())


def test_batch_of_one_image_uses_the_mean_of_earlier_batches():
    f_s, f_t, idx = (t[:1] for t in features())
    first = module_of()(f_s, f_t, idx)  # its own mean would leave nothing
    torch.testing.assert_close(first, 1 - torch.cosine_similarity(f_s, f_t).mean())
    module = module_of()
    module(*features(1))
    loss = module(f_s, f_t, idx)
    mean = module.local.running.mean
    torch.testing.assert_close(loss, 1 - torch.cosine_similarity(f_s - mean[0], f_t - mean[1]).mean())
    assert loss > 0 and torch.autograd.grad(loss, f_s)[0].isfinite().all()


def test_state_resumes_bit_for_bit_and_may_lack_the_mean():
    module, other = module_of(), module_of()
    for step in range(3):
        module(*features(step))
    assert {"local.running.mean", "local.running.steps"} <= module.state_dict().keys()
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(*features(3)), module(*features(3)))
    old = {k: v for k, v in module.state_dict().items() if "running" not in k}
    assert old.keys() == module_of(lckt_center="batch").state_dict().keys()
    other.load_state_dict(old)
    assert int(other.local.running.steps) == 0 and torch.equal(other(*features()), module_of()(*features()))
    module.reset_parameters()
    assert int(module.local.running.steps) == 0 and not module.local.running.mean.any()


def test_a_narrow_cast_keeps_the_mean():
    module = module_of().float()
    f_s, f_t, idx = features()
    module(f_s.float(), f_t.float(), idx)
    before = module.local.running.mean.clone()
    module.half()
    assert torch.equal(module.local.running.mean, before) and before.dtype == torch.float32


def test_a_loss_made_on_meta_has_to_be_reset():
    with torch.device("meta"):
        module = module_of()
    module.to_empty(device="cpu")
    with pytest.raises(RuntimeError, match="RunningCenter: mean, steps hold no values"):
        module.local.running.require_filled()
    module.reset_parameters()
    assert module.double()(*features()).isfinite()


@pytest.mark.parametrize("momentum", [-0.1, 1.5, "much"])
def test_a_momentum_that_is_no_share_is_refused(momentum):
    with pytest.raises((TypeError, ValueError), match="lckt_center_momentum"):
        module_of(lckt_center_momentum=momentum)
