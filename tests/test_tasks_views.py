"""Views: the two networks of a task get one batch and see different things in it."""

import pytest
import torch
from torch.nn import functional as F

from wcord_fast import data, models
from wcord_fast.train import views

# L, a, b of sRGB colours under D65, as published tables of the colour space have them.
COLOURS = {
    (1.0, 1.0, 1.0): (100.0, 0.0, 0.0),
    (0.0, 0.0, 0.0): (0.0, 0.0, 0.0),
    (1.0, 0.0, 0.0): (53.24, 80.09, 67.20),
    (0.0, 1.0, 0.0): (87.73, -86.18, 83.18),
    (0.0, 0.0, 1.0): (32.30, 79.19, -107.86),
    (0.5, 0.5, 0.5): (53.39, 0.0, 0.0),
    (0.01, 0.01, 0.01): (0.70, 0.0, 0.0),  # below both knees
}


@pytest.mark.parametrize("colour", COLOURS)
def test_lab(colour):
    actual = views.lab(torch.tensor(colour, dtype=torch.float64)[None, :, None, None])
    torch.testing.assert_close(actual.flatten(), torch.tensor(COLOURS[colour], dtype=torch.float64), atol=0.02, rtol=0)


def test_luminance_and_chrominance_are_independent():
    """A change of colour at one lightness is invisible to the one, grey levels are to the other; both fill [-1, 1]."""
    corners = torch.cartesian_prod(*[torch.linspace(0, 1, 12)] * 3)[:, :, None, None]
    light, colour = views.luminance(), views.chrominance()
    assert (light.channels, colour.channels) == (1, 2)
    seen = light.see(corners)
    assert seen.min() == -1 and seen.max() == pytest.approx(1, abs=1e-5)
    ab = colour.see(corners)
    assert ab.amax((0, 2, 3)).tolist() == pytest.approx([1, 1], abs=0.02)
    assert ab.amin((0, 2, 3)).tolist() == pytest.approx([-1, -1], abs=0.02)
    greys = torch.rand(5, 1, 3, 3).expand(-1, 3, -1, -1)
    torch.testing.assert_close(colour.see(greys), colour.see(torch.zeros(5, 3, 3, 3)), atol=1e-4, rtol=0)


def test_coarse_and_detail_add_up():
    images = torch.rand(2, 1, 10, 10)  # 10 is no multiple of 4
    low, high = views.coarse(4), views.detail(4)
    torch.testing.assert_close((low.see(images) + 1 + high.see(images)) / 4, images)
    blocks = low.see(images)[:, :, :4, :4]
    assert torch.equal(blocks, blocks[:, :, :1, :1].expand_as(blocks))
    assert high.see(images)[:, :, :8, :8].reshape(2, 2, 4, 2, 4).mean((2, 4)).abs().max() < 1e-6


def test_low_resolution_view_equals_interpolation():
    digits = data.load("digits", image_size=16)
    images = digits.test_images[:5].float() / 255
    seen = views.resized(4, digits, least=8).see(images)
    assert seen.shape == (5, 1, 8, 8)
    assert torch.equal(seen[:, :, ::2, ::2], seen[:, :, 1::2, 1::2])  # four by four pixels, each of them repeated
    small = F.interpolate(images, size=(4, 4), mode="bilinear", antialias=True)
    torch.testing.assert_close(seen[:, :, ::2, ::2], (small - digits.mean[0]) / digits.std[0])
    whole = views.resized(16, digits, least=8).see(images)
    torch.testing.assert_close(whole, (images - digits.mean[0]) / digits.std[0])
    plain = next(iter(data.TestBatches(digits, 5)))[0]
    torch.testing.assert_close(whole, plain)  # as without a view


def test_viewed_network_equals_the_network_on_the_view():
    torch.manual_seed(0)
    net = models.create("resnet8", num_classes=3, in_channels=2).eval()
    keys, images = list(net.state_dict()), torch.rand(2, 3, 8, 8)
    expected = net(views.chrominance().see(images), return_features=True)
    assert views.look_through(net, views.chrominance()) is net and list(net.state_dict()) == keys
    features, logits = net(images, return_features=True)
    assert torch.equal(logits, expected[1]) and all(
        torch.equal(a, b) for a, b in zip(features, expected[0], strict=True)
    )
