"""VGG, ResNet-50, MobileNetV2 and ShuffleNets: feature lists, published state-dict keys, pre-activation taps."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from wcord_fast import models

# Channels of f0 .. f(k-1), their sizes for 32x32 images, and the penultimate width.
FEATURES = {
    "vgg8": ((64, 128, 256, 512, 512), (32, 16, 8, 4, 4), 512),
    "vgg13": ((64, 128, 256, 512, 512), (32, 16, 8, 4, 4), 512),
    "ResNet50": ((64, 256, 512, 1024, 2048), (32, 32, 16, 8, 4), 2048),
    "MobileNetV2": ((16, 12, 16, 48, 160), (16, 16, 8, 4, 2), 1280),
    "ShuffleV1": ((24, 240, 480, 960), (32, 16, 8, 4), 960),
    "ShuffleV2": ((24, 116, 232, 464), (32, 16, 8, 4), 1024),
}
# Some published state-dict keys of each, with their shapes at 100 classes.
KEYS = {
    "vgg8": {"block0.0.weight": (64, 3, 3, 3), "block4.1.running_mean": (512,), "classifier.bias": (100,)},
    "vgg13": {"block1.3.weight": (128, 128, 3, 3), "block1.4.weight": (128,), "classifier.weight": (100, 512)},
    "ResNet50": {
        "conv1.weight": (64, 3, 3, 3),
        "layer1.0.shortcut.0.weight": (256, 64, 1, 1),
        "layer4.2.conv3.weight": (2048, 512, 1, 1),
        "linear.weight": (100, 2048),
    },
    "MobileNetV2": {
        "conv1.0.weight": (16, 3, 3, 3),
        "blocks.0.0.conv.0.weight": (16, 16, 1, 1),
        "blocks.1.1.conv.3.weight": (72, 1, 3, 3),
        "conv2.1.weight": (1280,),
        "classifier.0.weight": (100, 1280),
    },
    "ShuffleV1": {
        "layer1.0.conv1.weight": (54, 24, 1, 1),
        "layer2.0.conv3.weight": (240, 20, 1, 1),
        "linear.weight": (100, 960),
    },
    "ShuffleV2": {
        "layer1.0.conv5.weight": (58, 58, 1, 1),
        "layer3.3.bn2.weight": (232,),
        "conv2.weight": (1024, 464, 1, 1),
        "linear.bias": (100,),
    },
}


def images(size=32):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", FEATURES)
@torch.no_grad()
def test_features(name):
    widths, sides, last = FEATURES[name]
    net = models.create(name, num_classes=7).eval()
    plain = net(images())
    for preact in (False, True):
        features, logits = net(images(), return_features=True, preact=preact)
        shapes = [(2, c, s, s) for c, s in zip(widths, sides, strict=True)]
        assert [tuple(f.shape) for f in features] == [*shapes, (2, last)]
        assert torch.equal(logits, net.head(features[-1])) and torch.equal(logits, plain)
    assert net.feature_dim == last and net(images(8)).shape == (2, 7)


@pytest.mark.parametrize("name", KEYS)
def test_published_keys(name):
    state = models.create(name).state_dict()
    assert {key: tuple(state[key].shape) for key in KEYS[name]} == KEYS[name]


@pytest.mark.parametrize("name", ["vgg8", "ResNet50", "ShuffleV1"])
@torch.no_grad()
def test_pre_activation_is_the_input_of_the_relu(name):
    net = models.create(name).eval()
    post, pre = (net(images(16), return_features=True, preact=p)[0] for p in (False, True))
    for a, b in zip(post[1:-1], pre[1:-1], strict=True):
        assert float(b.min()) < 0 and torch.equal(a, F.relu(b))
    assert torch.equal(post[0], pre[0]) and torch.equal(post[-1], pre[-1])


@torch.no_grad()
def test_the_pre_activation_of_shufflenet_v2_is_not_shuffled():
    net = models.create("ShuffleV2").eval()
    post, pre = (net(images(16), return_features=True, preact=p)[0] for p in (False, True))
    for a, b in zip(post[1:-1], pre[1:-1], strict=True):
        half = b.shape[1] // 2
        assert torch.equal(a[:, 0::2], b[:, :half]) and torch.equal(a[:, 1::2], F.relu(b[:, half:]))


def test_shuffle_interleaves_groups():
    x = torch.arange(6.0).view(1, 6, 1, 1)
    assert models.shufflenetv1.shuffle(x, 3).flatten().tolist() == [0, 2, 4, 1, 3, 5]


def test_vgg_pools_large_images_once_more():
    net = models.create("vgg8").eval()
    assert [f.shape[-1] for f in net(images(64), return_features=True)[0][:-1]] == [64, 32, 16, 8, 4]


@pytest.mark.parametrize("spelling", ["vgg-13", "VGG13_BN", "mobilenetv2", "ShuffleNetV1", "shufflenet_v2"])
def test_other_spellings(spelling):
    assert models.create(spelling, num_classes=2).num_classes == 2


def test_misspelt_name_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"name: .*got 'mobilnetv2'; did you mean 'MobileNetV2'"):
        models.create("MobilNetV2")


@pytest.mark.parametrize("name", FEATURES)
def test_every_parameter_learns(name):
    net = models.create(name, num_classes=3)
    net(images(16)).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
