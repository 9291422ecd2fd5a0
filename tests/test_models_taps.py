"""Networks of other programs as students and teachers, by forward hooks."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from wcord_fast import distill, models
from wcord_fast.models import Tapped


class Foreign(nn.Module):
    """A network that knows nothing of this package."""

    def __init__(self, classes=4):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU())
        self.layer1 = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.layer2 = nn.Conv2d(8, 10, 3, stride=2, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(10, classes)

    def forward(self, x):
        x = self.layer2(self.layer1(self.stem(x)).relu()).relu()
        return self.classifier(self.pool(x).flatten(1))


def test_features_by_name():
    torch.manual_seed(0)
    net = Foreign().eval()
    tapped, x = Tapped(net, features=("stem", "layer1", "layer2")), torch.randn(3, 1, 8, 8)
    (f0, f1, f2, last), logits = tapped(x, return_features=True)
    assert torch.equal(logits, net(x)) and torch.equal(tapped(x), logits)
    assert torch.equal(f0, net.stem(x)) and torch.equal(f1, net.layer1(f0)) and f2.shape == (3, 10, 2, 2)
    assert torch.equal(net.classifier(last), logits) and tapped.head is net.classifier
    pooled = Tapped(Foreign(), features="layer2", penultimate=None)(x, return_features=True)[0]
    torch.testing.assert_close(pooled[1], pooled[0].mean((2, 3)))


def test_the_state_dict_is_the_networks_own():
    net = Foreign()
    tapped = Tapped(net, features="layer1")
    assert set(tapped.state_dict()) == set(net.state_dict())
    tapped.load_state_dict({k: torch.full_like(v, 2) for k, v in net.state_dict().items()})
    assert net.layer1.weight.mean().item() == 2
    outer = nn.ModuleDict({"a": tapped})
    outer.load_state_dict(outer.state_dict())


@pytest.mark.parametrize("inner_first", [True, False])
def test_the_state_dict_of_a_network_with_a_child_called_network_is_whole(inner_first):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.classifier = (Foreign(8), nn.Linear(8, 4)) if inner_first else (None, nn.Linear(8, 4))
            self.network = self.network or Foreign(8)

        def forward(self, x):
            return self.classifier(self.network(x))

    first, second, x = Outer(), Outer(), torch.randn(2, 1, 8, 8)
    state = Tapped(first, "network.layer1").state_dict()
    assert {name: value.tolist() for name, value in state.items()} == {
        name: value.tolist() for name, value in first.state_dict().items()
    }
    Tapped(second, "network.layer1").load_state_dict(state)
    assert torch.equal(first(x), second(x))


WRONG = {
    "misspelt": (("layr1",), "auto", r"features: .*no module 'layr1' \(did you mean 'layer1'\?\); at its top"),
    "penultimate": ((), "head", r"penultimate: the network has no module 'head'"),
    "nothing": ((), None, r"features: expected at least one name"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_tap_lists_the_names(case):
    features, penultimate, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        Tapped(Foreign(), features=features, penultimate=penultimate)
    with pytest.raises(ValueError, match=r"no nn.Linear"):
        Tapped(nn.Conv2d(1, 1, 1))
    with pytest.raises(TypeError, match=r"network: expected a torch.nn.Module"):
        Tapped(lambda x: x)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"features": None}, TypeError, "features: expected the name of a module .*, got None"),
        ({"features": ("layer1", 3)}, TypeError, r"features: .*, got \('layer1', 3\)"),
        ({"penultimate": ""}, ValueError, "penultimate: the network has no module ''"),
        ({"penultimate": 3}, TypeError, "penultimate: expected the name of a module or None, got 3"),
    ],
)
def test_what_names_no_module_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        Tapped(Foreign(), **options)
    with pytest.raises(ValueError, match=r"no nn\.Linear inside"):
        Tapped(nn.Linear(3, 2))


def test_modules_that_run_twice_or_never_are_refused():
    twice = nn.Sequential(a := nn.Linear(4, 4), a, nn.Linear(4, 2))
    with pytest.raises(RuntimeError, match="runs more than once"):
        Tapped(twice, features="0")(torch.ones(1, 4), return_features=True)
    foreign = Foreign()
    foreign.unused = nn.Conv2d(1, 1, 1)
    tapped = Tapped(foreign, features="unused", penultimate="classifier")
    with pytest.raises(RuntimeError, match="'unused' did not run"):
        tapped(torch.ones(1, 1, 8, 8), return_features=True)
    assert tapped(torch.ones(1, 1, 8, 8)).shape == (1, 4)  # no feature is requested


def test_a_copy_keeps_its_own_features():
    torch.manual_seed(0)
    tapped, x = Tapped(Foreign(), features=("stem", "layer1")), torch.randn(3, 1, 8, 8)
    wanted = tapped(x, return_features=True)
    saved = io.BytesIO()
    torch.save(tapped, saved)
    saved.seek(0)
    for other in (copy.deepcopy(tapped), torch.load(saved, weights_only=False)):
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.mul_(2)
        features, logits = other(x, return_features=True)
        assert len(features) == 3 and not torch.equal(logits, wanted[1])
        again = tapped(x, return_features=True)  # the original is as it was
        assert all(torch.equal(a, b) for a, b in zip([*again[0], again[1]], [*wanted[0], wanted[1]], strict=True))


def test_a_foreign_network_is_distilled():
    torch.manual_seed(0)
    student = Tapped(Foreign(), features=("stem", "layer1", "layer2"))
    teacher = models.create("resnet8", 4, in_channels=1).eval()
    images, index = torch.randn(6, 1, 8, 8), torch.arange(6)
    labels = torch.arange(20) % 4
    for name in ("wcord+kd", "sp", "fitnet"):
        options = {"num_negatives": 5} if name == "wcord+kd" else {}
        method = distill.create(
            name, student=student, teacher=teacher, example=images[:2], num_data=20, labels=labels, **options
        )
        student.zero_grad()
        out = distill.Outputs(*student(images, return_features=True))
        with torch.no_grad():
            target = distill.Outputs(*teacher(images, return_features=True))
        method(out, target, distill.Batch(images, labels[:6], index)).value.backward()
        assert student.network.layer1.weight.grad.abs().sum() > 0
