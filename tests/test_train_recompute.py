"""Gradient checkpointing changes no number of a run and keeps fewer tensors."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from tests.test_train_loop import assert_equal, everything
from tests.train_tiny import make_run
from wcord_fast import data, distill, models
from wcord_fast.models.taps import Tapped
from wcord_fast.models.torchvision_import import torchvision_models
from wcord_fast.train.loop import fit
from wcord_fast.train.network_calls import plain
from wcord_fast.train.recipe import Recipe
from wcord_fast.train.recompute import blocks_of, checkpointed

ON = {"gradient_checkpointing": True}


class Stateful(nn.Module):
    """A block with everything that a second run could change: statistics, a power iteration, random numbers."""

    def __init__(self, width):
        super().__init__()
        self.conv = spectral_norm(nn.Conv2d(width, width, 3, padding=1))
        self.norm, self.drop = nn.BatchNorm2d(width, momentum=None), nn.Dropout(0.5)

    def forward(self, x, *, scale):
        return self.drop(self.norm(self.conv(x)).relu()) * scale


class Net(nn.Module):
    def __init__(self, block=Stateful):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.blocks = nn.ModuleList(block(4) for _ in range(3))
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, scale=0.5)
        return self.fc(x.mean((2, 3)))


def made(make):
    torch.manual_seed(0)
    return make()


def numbers(forward, network, images):
    """Features, logits, gradients and buffers after two steps, each of two backward passes through the same graph."""
    result = []
    torch.manual_seed(1)
    for _ in range(2):
        out = forward(images)
        loss = sum(f.square().mean() for f in out.feats) + out.logits.square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
        result += [*out.feats, out.logits]
    gradients = [p.grad for p in network.parameters()]
    assert all(g is not None for g in gradients)
    return [x.detach().clone() for x in [*result, *gradients, *network.buffers()]]


def compare(make, images, mode=True):
    """All numbers are equal to the bit with and without, and nothing is left on the network."""
    results = []
    for on in (False, True):
        network = made(make).train(mode)
        forward = plain(network)
        results.append(numbers(checkpointed(forward, blocks_of(network)) if on else forward, network, images))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    assert not any("forward" in module.__dict__ for module in network.modules())


FAMILIES = ("resnet8", "resnet8x4", "wrn_16_1", "vgg8", "mobilenetv2", "shufflev1", "shufflev2")


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("mode", [True, False])
def test_own_networks_give_equal_bits(name, mode):
    compare(lambda: models.create(name, 3, in_channels=1), torch.randn(4, 1, 32, 32), mode)


def test_statistics_power_iterations_dropout_and_features_tapped_inside_a_block():
    taps = ("blocks.0.norm", "blocks.1", "blocks.2.conv")
    compare(lambda: Tapped(Net(), features=taps), torch.randn(4, 1, 8, 8))


def saved_bytes(forward, images):
    """Of what the graph keeps outside of the blocks."""
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        forward(images)
    return sum(t.numel() * t.element_size() for t in kept.values())


def test_less_is_kept():
    network = models.create("resnet20", 3, in_channels=1)
    images = torch.randn(4, 1, 32, 32)
    forward = plain(network)
    assert saved_bytes(checkpointed(forward, blocks_of(network)), images) < 0.3 * saved_bytes(forward, images)


@pytest.mark.parametrize(("make", "names"), [
    (lambda: models.create("resnet8", 3), ["layer1.0", "layer2.0", "layer3.0"]),
    (lambda: models.create("vgg11", 3), ["block2", "block3", "block4"]),
    (Net, ["blocks.0", "blocks.1", "blocks.2"]),
])  # fmt: skip
def test_which_blocks(make, names):
    assert [name for name in blocks_of(make()) if "block0" not in name and "block1" not in name] == names


@pytest.mark.parametrize("where", ["inside", "behind"])
def test_an_input_that_is_changed_in_place_is_refused(where):
    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.first, self.second = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)

        def forward(self, x, scale):
            return self.second(self.first(x.relu_() if where == "inside" else x)) * scale

    class Behind(Net):
        def forward(self, x):
            x = self.stem(x)
            out = self.blocks[0](x, scale=2) + 0
            x.detach().zero_()
            return self.fc(out.mean((2, 3)))

    network = Net(Block) if where == "inside" else Behind(Block)
    forward = checkpointed(plain(Tapped(network, features="stem", copy=True)), blocks_of(network))
    refused = r"gradient_checkpointing: the input of 'blocks\.0' is changed in place|modified by an inplace operation"
    with pytest.raises((NotImplementedError, RuntimeError), match=refused):  # PyTorch's, where it has one
        forward(torch.randn(2, 1, 4, 4)).logits.sum().backward()
    assert not any("forward" in module.__dict__ for module in network.modules())


@pytest.mark.parametrize("settings", [{}, {"accumulate": 2, "ema": 0.9, "log_grad_norms": True}, {"precision": "bf16"}])
def test_a_run_is_equal_to_the_bit(tmp_path, settings):
    runs = [make_run(tmp_path / str(on), "wcord+kd", epochs=1, **settings, **(ON if on else {})) for on in (0, 1)]
    for run in runs:
        fit(run)
    assert runs[1].blocks and not runs[0].blocks
    one, other = (everything(run.directory) | {"spec": None} for run in runs)
    assert_equal(one, other)


def test_fit_has_the_option():
    images, labels = torch.randn(24, 1, 8, 8), torch.arange(24) % 3
    results = []
    for options in ({}, ON):
        loader = torch.utils.data.DataLoader(data.Indexed(torch.utils.data.TensorDataset(images, labels)), 8)
        student, teacher = made(Net), made(lambda: models.create("resnet8", 3, in_channels=1))
        distill.fit(student, teacher, loader, "kd", epochs=1, quiet=True, **options)
        results.append(student.state_dict())
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"gradient_checkpointing: expected a network with blocks .* got Linear"):
        blocks_of(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="gradient_checkpointing: not supported with compile"):
        Recipe(gradient_checkpointing=True, compile=True)
    assert "gradient_checkpointing" not in Recipe().described()


NAMED = ("torchvision:resnet18", "timm:convnext_atto", "timm:vit_tiny_patch16_224@32")


@pytest.mark.parametrize("name", NAMED)
def test_networks_of_libraries(name):
    try:
        torchvision_models(name)  # which timm imports too
    except ImportError as error:
        pytest.skip(str(error))
    pytest.importorskip(name.partition(":")[0])
    compare(lambda: models.create(name, 3, image_size=(32, 32)), torch.randn(2, 3, 32, 32))
