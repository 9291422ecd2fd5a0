"""Networks: published sizes, feature lists, state-dict keys, and a forward rebuilt from the state dict alone."""

import copy

import pytest
import torch
from torch.nn import functional as F

from wcord_fast import models
from wcord_fast.models.vgg import VGG

# Parameters with 100 classes, as published.
PARAMETERS = {
    "resnet8": 83892,
    "resnet14": 181108,
    "resnet20": 278324,
    "resnet32": 472756,
    "resnet44": 667188,
    "resnet56": 861620,
    "resnet110": 1736564,
    "resnet8x4": 1233540,
    "resnet32x4": 7433860,
    "wrn_16_1": 180916,
    "wrn_16_2": 703284,
    "wrn_40_1": 569780,
    "wrn_40_2": 2255156,
    "vgg8": 3965028,
    "vgg11": 9277284,
    "vgg13": 9462180,
    "vgg16": 14774436,
    "vgg19": 20086692,
    "ResNet50": 23705252,
    "MobileNetV2": 812836,
    "ShuffleV1": 949258,
    "ShuffleV2": 1355528,
}
WIDTHS = {  # stem and stages
    "resnet8": (16, 16, 32, 64),
    "resnet20": (16, 16, 32, 64),
    "resnet8x4": (32, 64, 128, 256),
    "wrn_16_1": (16, 16, 32, 64),
    "wrn_16_2": (16, 32, 64, 128),
}


def images(n=2, channels=3, size=16, seed=0):
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


def fresh(name, seed=0, **options):
    """A network whose batch norms are not the identity, so that a misplaced one shows."""
    torch.manual_seed(seed)
    net = models.create(name, **options)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
            torch.nn.init.normal_(module.running_mean, std=0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    return net


def test_every_published_name_is_listed_once():
    assert sorted(models.names()) == sorted([*PARAMETERS, "resnet18", "resnet34", "inception_v3"])


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name):
    net = models.create(name)
    assert sum(p.numel() for p in net.parameters()) == PARAMETERS[name]
    assert net.num_classes == 100


@pytest.mark.parametrize("size", [32, 16, 8])
@pytest.mark.parametrize("name", WIDTHS)
def test_feature_list(name, size):
    net = models.create(name, num_classes=7).eval()
    widths = WIDTHS[name]
    for preact in (False, True):
        features, logits = net(images(size=size), return_features=True, preact=preact)
        sides = (size, size, size // 2, size // 4)
        assert [tuple(f.shape) for f in features] == [
            *((2, c, s, s) for c, s in zip(widths, sides, strict=True)),
            (2, widths[-1]),
        ]
        assert logits.shape == (2, 7)
        assert torch.equal(logits, net.fc(features[-1]))
    assert net.feature_dim == widths[-1]
    torch.testing.assert_close(net(images(size=size)), logits, rtol=0, atol=0)


def test_odd_and_rectangular_images():
    net = models.create("resnet8", num_classes=4).eval()
    features, _ = net(torch.randn(2, 3, 9, 13), return_features=True)
    assert [tuple(f.shape[2:]) for f in features[:-1]] == [(9, 13), (9, 13), (5, 7), (3, 4)]


def conv(state, key, x, stride=1):
    weight = state[f"{key}.weight"]
    return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)


def norm(state, key, x):
    return F.batch_norm(x, *(state[f"{key}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")))


def resnet_by_hand(state, x, blocks):
    """The published forward in eval mode, from the state dict alone."""
    x = F.relu(norm(state, "bn1", conv(state, "conv1", x)))
    features, before = [x], []
    for stage in (1, 2, 3):
        for b in range(blocks):
            key, stride = f"layer{stage}.{b}", 2 if stage > 1 and b == 0 else 1
            out = F.relu(norm(state, f"{key}.bn1", conv(state, f"{key}.conv1", x, stride)))
            out = norm(state, f"{key}.bn2", conv(state, f"{key}.conv2", out))
            if f"{key}.downsample.0.weight" in state:
                x = norm(state, f"{key}.downsample.1", conv(state, f"{key}.downsample.0", x, stride))
            pre = out + x
            x = F.relu(pre)
        features.append(x)
        before.append(pre)
    features.append(F.avg_pool2d(x, 8).flatten(1))
    return features, before, F.linear(features[-1], state["fc.weight"], state["fc.bias"])


def wrn_by_hand(state, x, blocks):
    x = conv(state, "conv1", x)
    features, before = [x], []
    for stage in (1, 2, 3):
        for b in range(blocks):
            key, stride = f"block{stage}.layer.{b}", 2 if stage > 1 and b == 0 else 1
            pre = norm(state, f"{key}.bn1", x)
            if b == 0 and stage > 1:
                before.append(pre)
            act = F.relu(pre)
            out = F.relu(norm(state, f"{key}.bn2", conv(state, f"{key}.conv1", act, stride)))
            out = conv(state, f"{key}.conv2", out)
            shortcut = f"{key}.convShortcut"
            x = out + (conv(state, shortcut, act, stride) if f"{shortcut}.weight" in state else x)
        features.append(x)
    before.append(norm(state, "bn1", x))
    features.append(F.avg_pool2d(F.relu(before[-1]), 8).flatten(1))
    return features, before, F.linear(features[-1], state["fc.weight"], state["fc.bias"])


@pytest.mark.parametrize(
    ("name", "by_hand", "blocks"),
    [
        ("resnet8", resnet_by_hand, 1),
        ("resnet14", resnet_by_hand, 2),
        ("resnet8x4", resnet_by_hand, 1),
        ("wrn_16_1", wrn_by_hand, 2),
        ("wrn_16_2", wrn_by_hand, 2),
    ],
)
def test_forward_equals_the_published_network_at_32x32(name, by_hand, blocks):
    net = fresh(name, num_classes=5).double().eval()
    state = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    used = set()

    class Recorded(dict):
        def __getitem__(self, key):
            used.add(key)
            return super().__getitem__(key)

    x = images(size=32).double()
    want, before, logits = by_hand(Recorded(state), x, blocks)
    actual, actual_logits = net(x, return_features=True)
    torch.testing.assert_close(actual, want)
    torch.testing.assert_close(actual_logits, logits)
    actual, actual_logits = net(x, return_features=True, preact=True)
    torch.testing.assert_close(actual, [want[0], *before, want[-1]])
    torch.testing.assert_close(actual_logits, logits)
    assert used == set(state)  # the keys are the published ones, all of them


@pytest.mark.parametrize("name", ["resnet14", "wrn_16_2"])
def test_preact_changes_neither_gradients_nor_running_statistics(name):
    plain = fresh(name, num_classes=5)
    taps = copy.deepcopy(plain)
    x = images(n=4)
    logits = plain(x)
    features, logits_taps = taps(x, return_features=True, preact=True)
    torch.testing.assert_close(logits_taps, logits, rtol=0, atol=0)
    logits.square().sum().backward()
    logits_taps.square().sum().backward()
    for (key, p), q in zip(plain.named_parameters(), taps.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, msg=key)
    for (key, p), q in zip(plain.named_buffers(), taps.named_buffers(), strict=True):
        assert torch.equal(p, q[1]), key
    assert all((f < 0).any() for f in features[1:-1])  # really before the activation


def test_features_carry_gradients_of_their_own():
    net = fresh("resnet8", num_classes=5)
    features, _ = net(images(n=4), return_features=True)
    sum(f.square().mean() for f in features).backward()
    assert net.conv1.weight.grad.abs().sum() > 0
    assert net.fc.weight.grad is None


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("ResNet8X4", "resnet8x4"),
        ("RESNET-20", "resnet20"),
        ("resnet_20", "resnet20"),
        ("WRN-40-2", "wrn_40_2"),
        ("wrn40-2", "wrn_40_2"),
        (" wrn_16_1 ", "wrn_16_1"),
    ],
)
def test_any_case_and_separator(spelling, name):
    actual, want = models.create(spelling), models.create(name)
    assert [(k, v.shape) for k, v in actual.state_dict().items()] == [
        (k, v.shape) for k, v in want.state_dict().items()
    ]


def test_other_wide_resnets():
    net = models.create("wrn_10_3", num_classes=2, dropout=0.3)
    assert net.feature_dim == 192
    x = images(n=4)
    assert not torch.equal(net(x), net(x))  # dropout is on in training,
    net.eval()
    assert torch.equal(net(x), net(x))  # and off in evaluation


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("resnet8x5", {}, ValueError, "did you mean 'resnet8x4'"),
        ("wnr_16_2", {}, ValueError, "did you mean 'wrn_16_2'"),
        ("resnet9", {}, ValueError, "resnet8"),
        ("wrn_17_2", {}, ValueError, "6n"),
        ("wrn_4_1", {}, ValueError, "6n"),
        ("wrn_16_0", {}, ValueError, "width"),
        (8, {}, TypeError, "name"),
        ("resnet8", {"num_classes": 0}, ValueError, "num_classes"),
        ("resnet8", {"num_classes": 2.5}, TypeError, "num_classes"),
        ("resnet8", {"in_channels": 0}, ValueError, "in_channels"),
        ("wrn_16_1", {"dropout": 1.5}, ValueError, "dropout"),
        ("resnet8", {"dropout": 0.1}, TypeError, "dropout"),
    ],
)
def test_bad_names_and_options_are_refused(name, options, error, message):
    with pytest.raises(error, match=message):
        models.create(name, **options)


@pytest.mark.parametrize("function", [models.create, models.require_known, models.least_size])
def test_a_name_that_is_no_text_is_refused(function):
    with pytest.raises(TypeError, match="name: expected a str, got int"):
        function(5)


@pytest.mark.parametrize(
    ("network", "arguments", "error", "message"),
    [
        (models.ResNet, (9,), ValueError, "depth: expected 6n"),
        (models.ResNet, ("8",), TypeError, "depth: expected an int, got '8'"),
        (models.ResNet, (8.0,), TypeError, "depth: expected an int, got 8.0"),
        (models.ResNet, (8, (1, 2)), ValueError, r"widths: expected .*, got \(1, 2\)"),
        (models.ResNet, (8, 16), ValueError, "widths: expected .*, got 16"),
        (models.ResNet, (8, (16, 16, 32, "64")), TypeError, "widths: expected an int, got '64'"),
        (models.WideResNet, (10.0,), TypeError, "depth: expected an int, got 10.0"),
        (VGG, (9,), ValueError, "depth: expected one of 8, 11"),
    ],
)
def test_impossible_sizes_are_refused(network, arguments, error, message):
    with pytest.raises(error, match=message):
        network(*arguments)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(2, 1, 16, 16), ValueError, "x: expected shape"),
        (torch.zeros(3, 16, 16), ValueError, "x: expected shape"),
        (torch.zeros(0, 3, 16, 16), ValueError, "at least 1"),
        (torch.zeros(2, 3, 16, 7), ValueError, "8x8"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), TypeError, "uint8"),
    ],
)
def test_bad_images_are_refused(x, error, message):
    with pytest.raises(error, match=message):
        models.create("resnet8")(x)


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1"])
def test_grey_channels_last_and_strided_images_give_equal_logits(name):
    net = fresh(name, num_classes=5, in_channels=1).eval()
    x = images(n=4, channels=1)
    want = net(x)
    torch.testing.assert_close(net(x.expand(4, 1, 16, 16).contiguous(memory_format=torch.channels_last)), want)
    wide = torch.zeros(4, 1, 16, 32)
    wide[..., ::2] = x
    torch.testing.assert_close(net(wide[..., ::2]), want)
    net = net.to(memory_format=torch.channels_last)
    features, logits = net(x, return_features=True)
    torch.testing.assert_close(logits, want)
    assert all(f.is_contiguous(memory_format=torch.channels_last) for f in features[1:-1])


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1"])
@pytest.mark.parametrize("preact", [False, True])
def test_networks_compile_without_graph_breaks(name, preact):
    net = fresh(name, num_classes=5)
    compiled = torch.compile(copy.deepcopy(net), fullgraph=True, backend="eager")
    x = images()
    features, logits = net(x, return_features=True, preact=preact)
    actual, actual_logits = compiled(x, return_features=True, preact=preact)
    torch.testing.assert_close(actual, features)
    torch.testing.assert_close(actual_logits, logits)


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1"])
def test_networks_export(name):
    net = fresh(name, num_classes=5).eval()
    program = torch.export.export(net, (images(),))
    torch.testing.assert_close(program.module()(images(seed=1)), net(images(seed=1)))


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1"])
def test_bf16_autocast(name):
    net = fresh(name, num_classes=5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = net(images(n=8))
        loss = F.cross_entropy(logits.float(), torch.arange(8) % 5)
    loss.backward()
    assert logits.dtype == torch.bfloat16
    assert all(p.grad.isfinite().all() for p in net.parameters())
    exact = fresh(name, num_classes=5)(images(n=8))
    assert (logits.float() - exact).norm() < 0.05 * exact.norm()


def test_initialisation():
    torch.manual_seed(0)
    net = models.create("wrn_16_2")
    weight = net.block3.layer[1].conv1.weight  # 128 x 128 x 3 x 3
    assert weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    assert net.fc.bias.abs().sum() == 0
    torch.manual_seed(0)
    assert torch.equal(models.create("wrn_16_2").conv1.weight, net.conv1.weight)


@pytest.mark.parametrize("name", ["resnet8", "wrn_10_1"])
def test_networks_learn(name):
    """A few steps bring the loss of one batch down: gradients reach every parameter and point the right way."""
    net = fresh(name, num_classes=4)
    x, y = images(n=16, seed=3), torch.arange(16) % 4
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
