"""timm's networks through `Tapped`: its own feature extractor and its own penultimate vector are the oracles."""

from __future__ import annotations

import pytest
import torch

from wcord_fast import distill, models
from wcord_fast.models import Tapped
from wcord_fast.models.torchvision_import import torchvision_models

try:
    torchvision_models("timm")  # timm imports it; beside PyTorch's CPU wheel that needs our help
except ImportError as error:
    pytest.skip(str(error), allow_module_level=True)
timm = pytest.importorskip("timm")

CONVOLUTIONS = ("resnet18", "resnetv2_50", "mobilenetv3_small_050", "efficientnet_b0", "regnetx_002", "convnext_atto")
NAMES = (*CONVOLUTIONS, "vit_tiny_patch16_224")
X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def made(name, seed=0):
    torch.manual_seed(seed)
    options = {"img_size": 64} if name.startswith("vit") else {}
    net = timm.create_model(name, num_classes=7, **options).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.bias, std=0.2)
    return net


def tapped(net):
    """The modules that timm names as a network's stages, and the input of its classifier."""
    stages = [stage["module"] for stage in net.feature_info]
    return Tapped(net, features=stages[-4:], penultimate=net.default_cfg["classifier"])


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_penultimate_vector_equal_timm(name):
    net = made(name)
    tap = tapped(net)
    expected = net(X)
    for _ in range(2):
        features, logits = tap(X, return_features=True)
        assert len(features) == 5 and torch.equal(logits, expected)
        torch.testing.assert_close(features[-1], net.forward_head(net.forward_features(X), pre_logits=True))
    assert set(tap.state_dict()) == set(net.state_dict())


@pytest.mark.parametrize("name", CONVOLUTIONS)
@torch.no_grad()
def test_stages_equal_timms_extractor(name):
    net = made(name)
    extractor = timm.create_model(name, features_only=True).eval()
    children = dict(extractor.named_children())  # it flattens some networks: "stages.0" is "stages_0" there
    state = {}
    for key, value in net.state_dict().items():
        first, second, *_ = key.split(".")
        state[key.replace(".", "_", 1) if f"{first}_{second}" in children else key] = value
    assert not extractor.load_state_dict(state, strict=False).missing_keys
    features, _ = tapped(net)(X, return_features=True)
    for ours, theirs in zip(features[:-1], extractor(X)[-4:], strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("method", ["wcord+kd", "at", "sp", "ft"])
def test_a_step_of_distillation(method):
    student, teacher = tapped(made("mobilenetv3_small_050")), tapped(made("resnet18", 1)).requires_grad_(False)
    labels = torch.arange(12) % 7
    options = {"num_negatives": 4} if "wcord" in method else {}
    loss = distill.create(method, student=student, teacher=teacher, example=X, num_data=12, labels=labels, **options)
    student.train()
    out, target = (distill.Outputs(*net(X, return_features=True)) for net in (student, teacher))
    loss(out, target, distill.Batch(X, labels[:2], torch.arange(2))).value.backward()
    assert student.network.conv_stem.weight.grad.abs().sum() > 0


def test_weights_behind_a_prefix():
    source = made("resnet18").state_dict()
    net = made("resnet18", 1)
    models.load_weights(net, {"state_dict": {f"module.backbone.{key}": value for key, value in source.items()}})
    assert all(torch.equal(value, source[key]) for key, value in net.state_dict().items())
