"""Forms of taps, images prepared for a network, and the stages that are found in one: on modules made by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from wcord_fast.models import Tapped, with_features
from wcord_fast.models.forms import grid, parse_tap
from wcord_fast.models.prepare import Prepare
from wcord_fast.models.stages import module_outputs, stage_names

X = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Transformer(nn.Module):
    """Patches of 4 pixels, two registers and a class token, six blocks."""

    def __init__(self, width=8, depth=6, extra=3):
        super().__init__()
        self.embed = nn.Conv2d(3, width, 4, 4)
        self.extra = nn.Parameter(torch.randn(1, extra, width))
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width)) for _ in range(depth))
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.extra.expand(len(x), -1, -1), tokens], 1)
        for block in self.blocks:
            tokens = tokens + block(tokens)
        return self.head(tokens[:, 0])


class LastChannels(nn.Module):
    """Maps [B, H, W, C] between two convolutions."""

    def __init__(self):
        super().__init__()
        self.stem, self.mix, self.down = nn.Conv2d(3, 6, 2, 2), nn.Linear(6, 6), nn.Conv2d(6, 7, 2, 2)
        self.head = nn.Linear(7, 5)

    def forward(self, x):
        x = self.mix(self.stem(x).permute(0, 2, 3, 1))
        return self.head(self.down(x.permute(0, 3, 1, 2)).mean((2, 3)))


class Reducing(nn.Module):
    """A block whose first layer still has the size of the block before, and a gate of one pixel."""

    def __init__(self, before, after):
        super().__init__()
        self.expand, self.reduce = nn.Conv2d(before, after, 1), nn.Conv2d(after, after, 3, 2, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        x = self.reduce(self.expand(x))
        return x * self.pool(x).sigmoid()


def convolutional():
    body = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), Reducing(4, 5), Reducing(5, 6), Reducing(6, 7))
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(7 * 16, 5))


@pytest.mark.parametrize("form", ["map", "map3", "class", "mean", "mean3"])
def test_layouts_of_tokens_are_recognised(form):
    tokens = torch.randn(2, 3 + 8, 6)  # a map of 2 x 4 after three other tokens
    taken = parse_tap(f"x:{form}").convert(tokens, 32, 64)
    if form == "class":
        assert torch.equal(taken, tokens[:, 0])
    elif form.startswith("mean"):
        torch.testing.assert_close(taken, tokens[:, 3:].mean(1))
    else:
        assert taken.shape == (2, 6, 2, 4)
        assert all(torch.equal(taken[:, :, i // 4, i % 4], tokens[:, 3 + i]) for i in range(8))


@pytest.mark.parametrize(
    "tokens, height, width, extra, expected",
    [
        (196, 224, 224, None, (14, 14)),
        (197, 224, 224, None, (14, 14)),
        (201, 224, 224, None, (14, 14)),  # four registers
        (33, 64, 128, None, (4, 8)),
        (33, 128, 64, None, (8, 4)),
        (9, 32, 32, 5, (2, 2)),  # nine would be a map of 3 x 3
        (2, 32, 32, None, (1, 1)),
    ],
)
def test_the_map_has_the_images_aspect_ratio(tokens, height, width, extra, expected):
    assert grid(tokens, height, width, extra) == expected


def test_forms_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="expected a form map, class, mean, nhwc behind 'x', got 'maps'"):
        parse_tap("x:maps")
    with pytest.raises(ValueError, match=r"'x' to give \[B, T, D\], got \[2, 3\]"):
        parse_tap("x:map").convert(torch.zeros(2, 3), 8, 8)
    with pytest.raises(ValueError, match=r"'x' to give \[B, H, W, C\], got \[2, 3, 4\]"):
        parse_tap("x:nhwc").convert(torch.zeros(2, 3, 4), 8, 8)
    with pytest.raises(ValueError, match="'x' gives 12 tokens, 1 of them extra"):
        parse_tap("x:map1").convert(torch.zeros(2, 12, 4), 8, 8)
    with pytest.raises(ValueError, match="no module 'block'"):
        Tapped(Transformer(), ["block:map"])


def test_a_transformer_is_tapped_at_its_stem_and_at_four_blocks():
    network = Transformer()
    outputs, output = module_outputs(network, X)
    assert stage_names(outputs) == ("embed", "blocks.0:map3", "blocks.2:map3", "blocks.3:map3", "blocks.5:map3")
    assert network.training and output.shape == (3, 5)
    tapped = with_features(network, X)
    features, logits = tapped(X, return_features=True)
    assert [tuple(f.shape[1:]) for f in features] == [*[(8, 4, 4)] * 5, (8,)]
    assert torch.equal(network.head(features[-1]), logits)
    two = Tapped(network, ["blocks.2:map", "blocks.2:class"])(X, return_features=True)[0]  # one module in two forms
    torch.testing.assert_close(two[0], features[2])
    assert two[1].shape == (3, 8)


def test_the_stages_of_a_convolutional_network_are_its_blocks():
    """Layers inside a block that reduces the maps, or enlarged for the classifier, are no stages."""
    outputs, _ = module_outputs(convolutional(), X)
    assert stage_names(outputs) == ("0.1", "0.2", "0.3", "0")
    outputs, _ = module_outputs(LastChannels(), X)
    assert stage_names(outputs) == ("mix:nhwc", "down")
    features, _ = with_features(LastChannels(), X)(X, return_features=True)
    assert [tuple(f.shape[1:]) for f in features] == [(6, 8, 8), (7, 4, 4), (7,)]


def test_network_without_linear_head_gives_the_mean_of_its_last_stage():
    network = nn.Sequential(nn.Conv2d(3, 5, 3, 2), nn.Conv2d(5, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    features, _ = with_features(network, X)(X, return_features=True)
    torch.testing.assert_close(features[-1], features[-2].mean((2, 3)))
    with pytest.raises(ValueError, match=r"has no nn.Linear that gives the logits, nor feature maps"):
        with_features(nn.Flatten(), X)


def test_images_are_normalised_anew_and_resized():
    prepare = Prepare((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 8, 32, 3, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    pixels = torch.rand(2, 3, 8, 8)
    given = (pixels - torch.tensor((0.1, 0.2, 0.3))[:, None, None]) / torch.tensor((0.5, 0.6, 0.7))[:, None, None]
    wanted = (pixels - torch.tensor((0.5, 0.4, 0.3))[:, None, None]) / torch.tensor((0.2, 0.3, 0.4))[:, None, None]
    torch.testing.assert_close(prepare(given), wanted)
    assert prepare(torch.rand(2, 3, 20, 12)).shape == (2, 3, 8, 8) and not prepare.state_dict()


def test_grey_images_get_three_channels_each_with_its_own_scale():
    prepare = Prepare((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), None, 12, 1, (0.1,), (0.5,))
    out = prepare((torch.full((1, 1, 8, 16), 0.7) - 0.1) / 0.5)
    assert out.shape == (1, 3, 12, 16)
    torch.testing.assert_close(out[0, :, 0, 0], (0.7 - torch.tensor((0.5, 0.4, 0.3))) / torch.tensor((0.2, 0.3, 0.4)))


def test_images_without_declared_statistics_are_not_changed():
    assert torch.equal(Prepare((0.5,) * 3, (0.2,) * 3, None, 8, 3)(X), X)
    with pytest.raises(ValueError, match="in_channels: expected 3, or 1 for grey images, got 2"):
        Prepare((0.5,) * 3, (0.2,) * 3, None, 8, 2)
    with pytest.raises(ValueError, match="mean: expected 1 numbers, one per channel"):
        Prepare((0.5,) * 3, (0.2,) * 3, None, 8, 1, (0.5,) * 3, (0.2,) * 3)


@pytest.mark.parametrize(
    "given, error, words",
    [
        (((0.5,), None), ValueError, "mean, std: expected both or neither"),
        ((None, (0.5,)), ValueError, "mean, std: expected both or neither"),
        ((0.5, 0.5), ValueError, "mean: expected 1 numbers, one per channel, got 0.5"),
        (((0.5,), (0.0,)), ValueError, "std: expected a positive finite number, got 0"),
        (((float("nan"),), (1.0,)), ValueError, "mean: expected a number that is finite"),
        ((("a",), (1.0,)), TypeError, "mean: expected a number, got 'a'"),
    ],
)
def test_a_bad_normalisation_is_named(given, error, words):
    with pytest.raises(error, match=words):
        Prepare((0.5,) * 3, (0.2,) * 3, None, 8, 1, *given)
