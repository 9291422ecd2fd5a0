"""Transforms of training images: each draw is a function of (seed, epoch, row), in every loader."""

from __future__ import annotations

import random
import sys
import types

import numpy as np
import pytest
import torch

from tests.test_data_batches import pixels, small
from tests.train_tiny import config_of
from wcord_fast import data
from wcord_fast.data.transforms import Transforms
from wcord_fast.models.torchvision_import import torchvision_models
from wcord_fast.train import checkpoint

NOISE = "own_transforms.noise"


def noise(image):
    """Draws from all generators that a transform may use; the seed of the image is read off the result."""
    drawn = torch.randint(256, image.shape, dtype=torch.uint8)
    more = torch.from_numpy(np.random.randint(256, size=image.shape).astype(np.uint8))
    last = torch.tensor(list(random.randbytes(image.numel())), dtype=torch.uint8)
    return drawn + more + last.view(image.shape)


class Invert:
    def __call__(self, image):
        return 255 - image


@pytest.fixture(autouse=True)
def own(monkeypatch):
    module = types.ModuleType("own_transforms")
    module.noise, module.Invert = noise, Invert
    module.wider = lambda image: image.repeat(1, 1, 2)
    module.floats = lambda image: image.float()
    module.pillow = lambda image: "a picture"
    monkeypatch.setitem(sys.modules, "own_transforms", module)


def by_row(batches):
    return {int(row): image for images, _, rows in batches for image, row in zip(pixels(images), rows, strict=True)}


def test_text_serves_as_transforms():
    one, other = (
        by_row(data.TrainBatches(small(), 5, seed=3, transforms=t).epoch(0)) for t in (NOISE, Transforms(NOISE))
    )
    assert all(torch.equal(other[row], image) for row, image in one.items())
    with pytest.raises(ValueError, match=r"transforms: 'own_transforms\.nothing'"):
        data.TrainBatches(small(), 5, seed=3, transforms="own_transforms.nothing")


def test_an_image_depends_on_seed_epoch_and_row_alone():
    made = Transforms(NOISE)
    one = by_row(data.TrainBatches(small(), 5, seed=3, transforms=made).epoch(1))
    torch.rand(7), np.random.rand(7), random.random()
    for batch_size, start in ((4, 0), (5, 2)):
        other = by_row(data.TrainBatches(small(), batch_size, seed=3, transforms=made).epoch(1, start))
        assert all(torch.equal(image, one[row]) for row, image in other.items())
    for seed, epoch in ((3, 0), (4, 1)):
        other = by_row(data.TrainBatches(small(), 5, seed=seed, transforms=made).epoch(epoch))
        assert not any(torch.equal(image, one[row]) for row, image in other.items())
    assert len({tuple(image.flatten().tolist()) for image in one.values()}) == len(one)


def test_generators_are_left_as_they_were():
    before = checkpoint.rng_state()
    list(data.TrainBatches(small(), 5, seed=3, transforms=Transforms(NOISE)).epoch(0))
    after = checkpoint.rng_state()
    assert repr(before) == repr(after)


def test_crop_and_mirror_come_first_and_testing_and_banks_see_the_images_themselves():
    plain, inverted = (
        data.TrainBatches(small(), 5, seed=0),
        data.TrainBatches(small(), 5, seed=0, transforms=Transforms("own_transforms.Invert")),
    )
    for one, other in zip(plain.epoch(0), inverted.epoch(0), strict=True):
        assert torch.equal(255 - pixels(one.images), pixels(other.images)) and torch.equal(one.index, other.index)
    for one, other in zip(plain.once(), inverted.once(), strict=True):
        assert torch.equal(one.images, other.images)


def test_lazy_batches_do_not_depend_on_workers(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 2)):
        for kind in "ab":
            (tmp_path / split / kind).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(256, size=(20, 20, 3), dtype=np.uint8)).save(
                    tmp_path / split / kind / f"{i}.png"
                )
    folder = data.load("imagenet", data_dir=tmp_path, image_size=8)
    plain = data.LazyBatches(folder, 4, seed=0, workers=0)
    alone, two = (
        data.LazyBatches(folder, 4, seed=0, workers=workers, transforms=Transforms(NOISE)) for workers in (0, 2)
    )
    for one, other, without in zip(alone.epoch(2), two.epoch(2), plain.epoch(2), strict=True):
        assert torch.equal(one.images, other.images) and not torch.equal(one.images, without.images)
    for one, other in zip(alone.once(), plain.once(), strict=True):
        assert torch.equal(one.images, other.images)


@pytest.mark.parametrize(("text", "given"), [
    ("own_transforms.wider", r"uint8 \[1, 8, 16\]"),
    ("own_transforms.floats", r"float32 \[1, 8, 8\]"),
    ("own_transforms.pillow", "got str"),
])  # fmt: skip
def test_another_kind_of_image_is_refused(text, given):
    batches = data.train_batches(small(), 5, seed=0, transforms=text)
    with pytest.raises(ValueError, match=rf"transforms: expected '{text}' to give .*uint8 \[1, 8, 8\], .*{given}"):
        next(batches.epoch(0))


@pytest.mark.parametrize("text", ["nowhere.at_all", "v2:RandAugment(", "v2:(lambda x: x)", "v2:os.getcwd()"])
def test_a_bad_option_is_refused_before_anything_is_read(text):
    with pytest.raises(ValueError, match=r"transforms: "):
        config_of("--transforms", text)


def test_without_torchvision_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    for name in [name for name in sys.modules if name.startswith("torchvision.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ValueError, match=r"transforms: 'v2:RandAugment' needs torchvision.*pip install"):
        Transforms("v2:RandAugment")


def test_the_option_is_part_of_a_run():
    assert config_of("--transforms", NOISE).recipe("student")["transforms"] == NOISE
    assert "transforms" not in config_of().recipe("student")


def test_torchvision():
    try:
        torchvision_models("v2")
    except ImportError as error:
        pytest.skip(str(error))
    from torchvision.transforms import v2

    image = torch.randint(256, (1, 8, 8), dtype=torch.uint8)
    assert torch.equal(Transforms("v2:RandomInvert(p=1)")(image, (0,)), 255 - image)
    both = Transforms("v2:RandomInvert(p=1) + RandomSolarize(0, p=1.0) + Identity()")
    assert [type(step) for step in both.steps] == [v2.RandomInvert, v2.RandomSolarize, v2.Identity]
    assert torch.equal(both(image, (0,)), image)
    text = "v2:RandAugment(num_ops=2, magnitude=9)+RandomErasing(p=0.5)"
    one, other = (by_row(data.train_batches(small(size=16), n, seed=1, transforms=text).epoch(0)) for n in (5, 23))
    assert all(torch.equal(image, one[row]) for row, image in other.items())
    for bad, message in (
        ("v2:RandAugmen", "RandAugment"),
        ("v2:RandAugment(ops=2)", r"RandAugment\(ops=2\) cannot be"),
    ):
        with pytest.raises(ValueError, match=message):
            Transforms(bad)
