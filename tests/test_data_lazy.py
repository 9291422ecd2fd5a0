"""Folders decoded as needed: crops, order, workers, and a run that trains and resumes on them."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.test_data_folder import write
from wcord_fast import data
from wcord_fast.cli.main import main
from wcord_fast.data import lazy_batches


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("lazy")
    write(root / "train", {"cat": 9, "dog": 14, "emu": 8})
    write(root / "val", {"cat": 3, "emu": 4})
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "val" / "cat" / "000.png")
    return root


def gathered(batches):
    images, labels, index = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels), torch.cat(index)


def test_labels_and_order(folder):
    dataset = data.load("imagenet", data_dir=folder, image_size=16)
    assert dataset.classes == ("cat", "dog", "emu") and dataset.image_size == (16, 16) and dataset.num_classes == 3
    assert (
        torch.bincount(dataset.train_labels).tolist() == [9, 14, 8]
        and dataset.test_labels.tolist() == [0] * 3 + [2] * 4
    )
    batches = lazy_batches.LazyBatches(dataset, 8, seed=1, workers=0)
    images, labels, index = gathered(batches.epoch(0))
    assert len(batches) == 4 and images.shape == (31, 3, 16, 16) and sorted(index.tolist()) == list(range(31))
    assert torch.equal(labels, dataset.train_labels[index])
    colour = (images.mean((2, 3)) * torch.tensor(dataset.std) + torch.tensor(dataset.mean)).argmax(1)
    assert torch.equal(colour, labels)  # a cat is red, a dog green, an emu blue
    assert not torch.equal(gathered(batches.epoch(1))[2], index)
    limited = data.load("imagenet", data_dir=folder, image_size=16, limit_train=12)
    assert torch.bincount(limited.train_labels).tolist() == [4, 5, 3] and limited.fingerprint != dataset.fingerprint


def test_batches_do_not_depend_on_workers_or_the_start(folder):
    dataset = data.load("imagenet", data_dir=folder, image_size=12)
    before = torch.get_rng_state()
    alone = list(lazy_batches.LazyBatches(dataset, 10, seed=3, workers=0).epoch(2))
    helped = list(lazy_batches.LazyBatches(dataset, 10, seed=3, workers=2).epoch(2))
    later = list(lazy_batches.LazyBatches(dataset, 10, seed=3, workers=0).epoch(2, start=2))
    assert torch.equal(before, torch.get_rng_state())
    for a, b in [*zip(alone, helped, strict=True), *zip(alone[2:], later, strict=True)]:
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_positions_outside_the_epoch_are_refused(folder):
    dataset = data.load("imagenet", data_dir=folder, image_size=12)
    batches = lazy_batches.LazyBatches(dataset, 10, seed=3, workers=0)  # three of them
    assert list(batches.epoch(0, start=3)) == []
    for epoch, start, message in (
        (0, 4, "start: expected at most 3"),
        (0, -1, "start: expected"),
        (-1, 0, "epoch: exp"),
    ):
        with pytest.raises(ValueError, match=message):
            list(batches.epoch(epoch, start))
    with pytest.raises(TypeError, match="training batches come by epoch"):  # not test images with training labels
        next(iter(batches))


def test_centre_crop_equals_pillow(folder):
    dataset = data.load("imagenet", data_dir=folder, image_size=28)
    image, label, _ = (part[0] for part in next(iter(data.test_batches(dataset, 4))))
    with Image.open(folder / "val" / "cat" / "000.png") as noise:  # 60 x 40: the shorter side becomes 32
        want = np.asarray(noise.resize((48, 32), Image.Resampling.BILINEAR).crop((10, 2, 38, 30)))
    pixels = (image * torch.tensor(dataset.std)[:, None, None] + torch.tensor(dataset.mean)[:, None, None]) * 255
    np.testing.assert_allclose(pixels.permute(1, 2, 0).numpy(), want, atol=1e-3)
    assert int(label) == 0


def test_random_crops_are_parts_of_the_image():
    """Pixel values encode their place, so the crop's range of rows and columns gives its area and aspect."""
    rows, columns = np.mgrid[0:100, 0:200].astype(np.uint8)
    image = Image.fromarray(np.stack([rows, columns, rows * 0], -1))
    areas, mirrored = [], 0
    for seed in range(200):
        crop = np.asarray(lazy_batches.random_crop(image, 32, np.random.default_rng(seed))).astype(float)
        height, width = (np.ptp(crop[..., c]) * 32 / 31 for c in (0, 1))  # from pixel centre to pixel centre
        areas.append(height * width / 20_000)
        mirrored += bool(crop[0, 0, 1] > crop[0, -1, 1])
        assert 0.7 < width / height < 1.45
    assert 70 < mirrored < 130 and min(areas) < 0.12 and 0.4 < max(areas) < 1.05
    sliver = Image.new("RGB", (400, 4))
    assert lazy_batches.random_crop(sliver, 16, np.random.default_rng(0)).size == (16, 16)


def test_a_last_batch_of_one_image_joins_the_one_before(folder):
    dataset = data.load("imagenet", data_dir=folder, image_size=12)  # 31 and 7 images
    for size, sizes in ((10, [10, 10, 11]), (9, [9, 9, 9, 4])):
        batches = lazy_batches.LazyBatches(dataset, size, seed=3, workers=0)
        assert [len(b.index) for b in batches.epoch(0)] == sizes and len(batches) == len(sizes)
    assert [len(b.index) for b in lazy_batches.LazyBatches(dataset, 6, seed=None, workers=0)] == [6, 1]
    parts = [lazy_batches.LazyBatches(dataset, 14, seed=3, workers=0, part=(r, 2)) for r in range(2)]
    assert [[len(b.index) for b in p.epoch(0)] for p in parts] == [[7, 8], [7, 9]]
    index = torch.cat([b.index for p in parts for b in p.epoch(0)])
    assert sorted(index.tolist()) == list(range(31))


def test_system_errors_are_raised_in_one_line(folder, monkeypatch):
    def fails(path):
        raise OSError(24, "Too many open files", path)

    monkeypatch.setattr(lazy_batches, "read", fails)
    dataset = data.load("imagenet", data_dir=folder, image_size=12)
    with pytest.raises(OSError, match=r"Too many open files: '.*'$") as error:
        list(lazy_batches.LazyBatches(dataset, 4, seed=0, workers=1).epoch(0))
    assert "\n" not in str(error.value)


def test_a_folder_without_its_splits_is_refused(folder):
    with pytest.raises(ValueError, match=r"expected .*/train and .*/val"):
        data.load("imagenet", data_dir=folder / "train")
    with pytest.raises(ValueError, match="'imagenet' needs the folder"):
        data.load("imagenet")


def test_a_run_on_it_trains_and_resumes(folder, tmp_path, capsys):
    argv = ["distill", "--data=imagenet", "--config=digits", f"--data-dir={folder}", "--image-size=16", "--epochs=2"]
    argv += ["--teacher=resnet14", "--teacher-epochs=1", "--batch-size=8", "--methods=crd", "--no-tensorboard"]
    assert main([*argv, f"--output-dir={tmp_path}", "--threads=1"]) == 0
    assert "31 training and 7 test images, 3 classes" in capsys.readouterr().out
    assert main([*argv, f"--output-dir={tmp_path}", "--threads=1"]) == 0
    assert capsys.readouterr().out.count("finished earlier") == 2
    assert main(["evaluate", str(tmp_path / "crd"), f"--data-dir={folder}"]) == 0
    assert "on 7 test images" in capsys.readouterr().out
