"""A tap returns its module's output, also if the network changes that tensor in place, and leaves no hook."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from wcord_fast import distill
from wcord_fast.distill.stage import feature_modules
from wcord_fast.models import Tapped

X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """conv -> norm -> `then` -> classifier; `then` gets the norm's output and may change it."""

    def __init__(self, then, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.norm, self.relu = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.flat, self.drop, self.fc = nn.Identity(), nn.Dropout(0.5, inplace=True), nn.Linear(8, 5)
        self.then = then

    def forward(self, x):
        return self.fc(self.then(self, self.norm(self.conv(x))).mean((2, 3)))


def add(net, x):
    x += 1
    return x


def half(net, x):
    x[:, :4].mul_(2)
    return x


def view(net, x):
    return net.flat(x).relu_()


def detached(net, x):
    with torch.no_grad():
        x.detach().clamp_(-0.1, 0.1)
    return x.relu()


# each unchanged, and without a change in place
CHANGES = {
    "module": (lambda net, x: net.relu(x), lambda x: x.relu()),
    "function": (lambda net, x: F.relu_(x), lambda x: x.relu()),
    "+=": (add, lambda x: x + 1),
    "mul_": (lambda net, x: x.mul_(3), lambda x: x * 3),
    "part": (half, lambda x: torch.cat([x[:, :4] * 2, x[:, 4:]], 1)),
    "view": (view, lambda x: x.relu()),
    "none": (lambda net, x: x.relu(), lambda x: x.relu()),
}


@pytest.mark.parametrize("how", ["eager", "compiled", "autocast"])
@pytest.mark.parametrize("change", CHANGES)
def test_tap_returns_the_output_before_in_place_changes(change, how):
    in_place, out_of_place = CHANGES[change]
    net, twin = Net(in_place), Net(lambda net, x: out_of_place(x))
    net.conv.bias.data.fill_(0.3)
    twin.load_state_dict(net.state_dict())
    tapped = Tapped(net, features=("conv", "norm"))
    torch.compiler.reset()
    call = torch.compile(tapped, backend="eager", fullgraph=True) if how == "compiled" else tapped
    for _ in range(3):  # the first forward learns the taps to copy
        with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
            (conv, norm, last), logits = call(X, return_features=True)
            want_conv = twin.conv(X)
            want_norm = twin.norm(want_conv)
            want_last = out_of_place(want_norm).mean((2, 3))
            want = twin.fc(want_last)
        actual, wanted = (conv, norm, last, logits), (want_conv, want_norm, want_last, want)
        for a, b in zip(actual, wanted, strict=True):
            assert a.dtype == b.dtype and torch.equal(a, b)
        for model, values in ((net, actual), (twin, wanted)):
            model.zero_grad()
            sum(v.float().square().sum() for v in values).backward()
        for p, q in zip(net.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)
    assert bool((norm < 0).any())


def test_detached_changes_and_inference_mode_are_seen():
    tapped = Tapped(Net(detached), features="norm").eval()
    right = tapped.network.norm(tapped.network.conv(X))
    assert torch.equal(tapped(X, return_features=True)[0][0], right)
    tapped.network.then = CHANGES["module"][0]
    for _ in range(2):
        with torch.inference_mode():
            assert torch.equal(tapped(X, return_features=True)[0][0], right)


def test_networks_without_in_place_changes_copy_nothing():
    tapped = Tapped(Net(CHANGES["none"][0]), features=("conv", "norm"))
    seen = []
    for module in (tapped.network.conv, tapped.network.norm):
        module.register_forward_hook(lambda _m, _i, output: seen.append(output))
    for _ in range(2):
        seen.clear()
        features, _ = tapped(X, return_features=True)
        assert all(a is b for a, b in zip(features, seen, strict=False))


def test_only_the_changed_feature_is_copied():
    tapped = Tapped(Net(CHANGES["module"][0]), features=("conv", "norm"))
    seen = []
    tapped.network.conv.register_forward_hook(lambda _m, _i, output: seen.append(output))
    for _ in range(2):
        seen.clear()
        (conv, norm, _), _ = tapped(X, return_features=True)
        assert conv is seen[0] and bool((norm < 0).any())


def test_the_input_of_the_head_changed_by_the_head():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(108, 7), nn.ReLU(inplace=True), nn.Linear(7, 2))
    tapped = Tapped(net, penultimate="2")
    for _ in range(2):
        assert torch.equal(tapped(X, return_features=True)[0][-1], net[1](net[0](X)))


def test_in_place_dropout_in_training_does_not_change_the_tap():
    """Dropout in place changes its input in training only, so a forward in evaluation does not decide for training."""
    tapped = Tapped(Net(lambda net, x: net.drop(x)), features="norm").eval()
    for _ in range(2):
        tapped(X, return_features=True)
    tapped.train()
    for _ in range(2):
        feature = tapped(X, return_features=True)[0][0]
        assert bool((feature != 0).all())


def test_a_change_that_depends_on_the_data_is_an_error_or_copied():
    def sometimes(net, x):
        return x.relu_() if sometimes.now else x.relu()

    for always in (False, True):
        sometimes.now = False
        tapped = Tapped(Net(sometimes), features="norm", copy=always)
        tapped(X, return_features=True)
        sometimes.now = True
        if not always:
            with pytest.raises(RuntimeError, match=r"'norm' was changed in place .* Tapped\(..., copy=True\)"):
                tapped(X, return_features=True)
        assert bool((tapped(X, return_features=True)[0][0] < 0).any())
    with pytest.raises(TypeError, match="copy: expected True or False"):
        Tapped(Net(add), features="norm", copy="yes")


def test_activation_boundaries_see_negative_neurons():
    """The boundaries' loss on taps before `ReLU(inplace=True)` equals that on a network without it."""
    nets = [Net(CHANGES["module"][0], seed) for seed in (0, 1)]
    twins = [Net(lambda net, x: x.relu(), seed) for seed in (0, 1)]
    values = []
    for student, teacher in (nets, twins):
        pair = [Tapped(net, features=("conv", "norm")) for net in (student, teacher)]
        method = distill.create("ab", student=pair[0], teacher=pair[1], example=X, num_data=8)
        features = [net(X, return_features=True)[0] for net in pair]
        assert bool((features[0][1] < 0).any())
        values.append(method.stage.loss(*features))
        trained = {id(p) for module in feature_modules(pair[0]) for p in module.parameters()}
        assert trained == {id(p) for p in student.parameters()} - {id(p) for p in student.fc.parameters()}
    assert torch.equal(values[0], values[1])


def hooks_of(network):
    return [h for m in network.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]


def test_no_hook_stays_on_the_network():
    net = Net(CHANGES["none"][0])
    own = net.conv.register_forward_hook(lambda *_: None)
    one, two = Tapped(net, features="conv"), Tapped(net, features=("conv", "norm"))
    for _ in range(2):
        for tapped in (one, two):
            (feature, *_), logits = tapped(X, return_features=True)
            ref = weakref.ref(feature)
            del feature, logits, _
            gc.collect()
            assert ref() is None and len(hooks_of(net)) == 1
        assert net(X).shape == (4, 5)
    net.then = lambda net, x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        one(X, return_features=True)
    net.then = CHANGES["none"][0]
    own.remove()
    gone = weakref.ref(one)
    del one, tapped
    gc.collect()
    assert gone() is None and hooks_of(net) == [] and net(X).shape == (4, 5)
    assert "wcord" not in str(pickle.dumps(net.conv)) and hooks_of(copy.deepcopy(two).network) == []


def test_threads_share_a_network():
    net = Net(CHANGES["module"][0]).eval()
    tapped = [Tapped(net, features=("conv", "norm"))] * 2 + [Tapped(net, features="norm")]
    images = [torch.full_like(X, float(i + 1)) for i in range(3)]
    wanted = [t(x, return_features=True) for t, x in zip(tapped, images, strict=True)]
    meet, wrong = threading.Barrier(3), []
    net.then = lambda net, x: (meet.wait(10), net.relu(x))[1]  # all three are inside at once

    def work(i):
        try:
            for _ in range(5):
                features, logits = tapped[i](images[i], return_features=True)
                assert all(map(torch.equal, [*features, logits], [*wanted[i][0], wanted[i][1]]))
        except BaseException as error:
            wrong.append(error)
            meet.abort()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and hooks_of(net) == []


def test_a_hook_that_another_thread_removes_during_a_call_is_harmless():
    net = Net(CHANGES["module"][0]).eval()
    tapped, other = Tapped(net, features="norm"), Tapped(net, features="norm")
    wanted = tapped(X, return_features=True)
    inside, leave = threading.Event(), threading.Event()

    def first(module, args):  # runs before the hooks of `tapped`, which PyTorch has listed already
        if threading.current_thread() is not worker:
            leave.set()
            worker.join()

    def wait(net, x):
        if threading.current_thread() is worker:
            inside.set()
            leave.wait(60)
        return net.relu(x)

    worker = threading.Thread(target=lambda: other(X, return_features=True))
    net.then = wait
    worker.start()
    assert inside.wait(60)
    handle = net.fc.register_forward_pre_hook(first, prepend=True)
    features, logits = tapped(X, return_features=True)
    handle.remove()
    assert all(map(torch.equal, [*features, logits], [*wanted[0], wanted[1]])) and hooks_of(net) == []


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant):
    def then(net, x):
        return checkpoint(lambda x: net.relu(net.flat(net.norm(x * 2))), x, use_reentrant=reentrant)

    tapped = Tapped(Net(then), features="flat")
    if reentrant:  # its inside runs under no_grad: a loss on the feature would train nothing
        with pytest.raises(RuntimeError, match="'flat' trains, but runs without gradients"):
            tapped(X, return_features=True)
        with torch.no_grad():
            tapped(X, return_features=True)
        return
    twin = Net(lambda net, x: net.norm(x * 2))
    for _ in range(2):
        (feature, _), logits = tapped(X, return_features=True)
        want = twin.norm(twin.norm(twin.conv(X)) * 2)
        assert torch.equal(feature, want) and hooks_of(tapped.network) == []
        for net, f, out in ((tapped, feature, logits), (twin, want, twin.fc(want.relu().mean((2, 3))))):
            net.zero_grad()
            (f.square().sum() + out.square().sum()).backward()  # runs the network's inside again: no tap sees it
        torch.testing.assert_close(tapped.network.conv.weight.grad, twin.conv.weight.grad)


def test_frozen_module_can_be_tapped():
    def forward(net, x):
        with torch.no_grad():
            frozen = net.flat(2 * x)
        return frozen + x

    assert not Tapped(Net(forward), features="flat")(X, return_features=True)[0][0].requires_grad


def test_under_ddp(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        check_under_ddp()
    finally:
        dist.destroy_process_group()


def check_under_ddp():
    twin = Net(lambda net, x: x.relu())
    tapped = DistributedDataParallel(Tapped(Net(CHANGES["module"][0]), features="norm"))
    for _ in range(2):
        (feature, _), logits = tapped(X, return_features=True)
        want = twin.norm(twin.conv(X))
        assert torch.equal(feature, want)
        for net, f, out in ((tapped, feature, logits), (twin, want, twin.fc(want.relu().mean((2, 3))))):
            net.zero_grad()
            (f.square().sum() + out.square().sum()).backward()
        torch.testing.assert_close(tapped.module.network.conv.weight.grad, twin.conv.weight.grad)


def test_the_head_called_by_keyword():
    class ByKeyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.flat, self.fc = nn.Flatten(), nn.Linear(108, 2)

        def forward(self, x):
            return self.fc(input=self.flat(x))

    assert torch.equal(Tapped(ByKeyword(), features="flat")(X, return_features=True)[0][1], X.flatten(1))
