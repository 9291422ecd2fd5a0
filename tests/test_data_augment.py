"""Whole-batch crops and mirrors against one image at a time; normalisation; moments of the random moves."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wcord_fast.data.augment import Normalise, crop_flip


def one_at_a_time(images, index, shift, mirror, padding):
    """Pad with black, crop, mirror: what a per-image loader does."""
    out = []
    height, width = images.shape[-2:]
    for b, row in enumerate(index.tolist()):
        padded = torch.zeros(images.shape[1], height + 2 * padding, width + 2 * padding, dtype=images.dtype)
        padded[:, padding : padding + height, padding : padding + width] = images[row]
        top, left = (shift[b] + padding).tolist()
        crop = padded[:, top : top + height, left : left + width]
        out.append(crop.flip(-1) if mirror is not None and mirror[b] else crop)
    return torch.stack(out)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 7),
    batch=st.integers(1, 9),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    padding=st.integers(0, 13),
    mirrored=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_crop_flip_equals_a_loop_over_images(n, batch, channels, height, width, padding, mirrored, seed):
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(1, 256, (n, channels, height, width), dtype=torch.uint8, generator=g)
    before = images.clone()
    index = torch.randint(n, (batch,), generator=g)
    shift = torch.randint(-padding, padding + 1, (batch, 2), generator=g)
    mirror = torch.rand(batch, generator=g) < 0.5 if mirrored else None
    actual = crop_flip(images, index, shift, mirror)
    assert actual.dtype == torch.uint8
    assert torch.equal(actual, one_at_a_time(images, index, shift, mirror, padding))
    assert torch.equal(images, before)


def test_strided_images_give_channels_last_results():
    images = torch.randint(0, 256, (5, 6, 8, 3), dtype=torch.uint8).permute(0, 3, 1, 2)  # channels_last
    index, shift = torch.tensor([4, 0, 4]), torch.tensor([[1, -2], [0, 0], [-3, 3]])
    mirror = torch.tensor([True, True, False])
    actual = crop_flip(images, index, shift, mirror)
    assert torch.equal(actual, one_at_a_time(images, index, shift, mirror, 3))
    assert actual.is_contiguous(memory_format=torch.channels_last)


def test_crop_flip_compiles_without_graph_breaks():
    def step(images, index, shift, mirror):
        return normalise(crop_flip(images, index, shift, mirror))

    normalise = Normalise((0.5,), (0.25,), torch.float32, True, torch.device("cpu"))
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    args = images, torch.tensor([1, 3]), torch.tensor([[1, -1], [0, 2]]), torch.tensor([True, False])
    torch.testing.assert_close(torch.compile(step, fullgraph=True, backend="eager")(*args), step(*args))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)],
)
def test_normalise_equals_the_formula(dtype, tolerance, channels_last):
    mean, std = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
    images = torch.randint(0, 256, (4, 3, 5, 6), dtype=torch.uint8)
    before = images.clone()
    actual = Normalise(mean, std, dtype, channels_last, torch.device("cpu"))(images)
    m, s = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (mean, std))
    torch.testing.assert_close(actual.double(), (images.double() / 255 - m) / s, rtol=0, atol=tolerance)
    assert actual.dtype == dtype
    assert actual.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    assert torch.equal(images, before)


def test_normalise_refuses_integers():
    with pytest.raises(ValueError, match="dtype"):
        Normalise((0.5,), (0.5,), torch.uint8, False, torch.device("cpu"))
