"""Image folders: both layouts, ignored files, refused folders."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from wcord_fast import data
from wcord_fast.data import image_folder

COLOURS = {"cat": (200, 30, 30), "dog": (30, 200, 30), "emu": (30, 30, 200)}


def write(root, counts, size=(20, 14), suffixes=("png", "JPG", "bmp", "webp")):
    """Images of one colour per class."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", size, COLOURS[name]).save(root / name / f"{i:03d}.{suffixes[i % len(suffixes)]}")


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_train_and_test_folders(tmp_path, test_name):
    write(tmp_path / "train", {"dog": 5, "cat": 3, "emu": 1})
    write(tmp_path / test_name, {"emu": 2, "cat": 1})
    dataset = data.load("folder", data_dir=tmp_path, image_size=12)
    assert dataset.classes == ("cat", "dog", "emu")
    assert dataset.train_images.shape == (9, 3, 12, 12)
    assert dataset.train_labels.tolist() == [0] * 3 + [1] * 5 + [2]
    assert dataset.test_labels.tolist() == [0, 2, 2]
    for images, labels in ((dataset.train_images, dataset.train_labels), (dataset.test_images, dataset.test_labels)):
        expected = torch.tensor([COLOURS[dataset.classes[c]] for c in labels.tolist()])
        assert (images.float().mean((2, 3)) - expected).abs().max() < 4  # JPEG and WebP are lossy
    scaled = dataset.train_images.double() / 255
    np.testing.assert_allclose(dataset.mean, scaled.mean((0, 2, 3)), rtol=1e-9)
    assert dataset.name == tmp_path.name


def test_a_pipe_among_the_images_is_left_out(tmp_path, caplog):
    write(tmp_path / "train", {"cat": 2, "dog": 2})
    write(tmp_path / "test", {"cat": 1})
    os.mkfifo(tmp_path / "train" / "cat" / "pipe.png")  # reading it would never end
    assert len(data.load("folder", data_dir=tmp_path, image_size=12).train_labels) == 4
    assert "pipe.png is no file: left out" in caplog.text


def test_pixels_are_pillows(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    write(tmp_path / "train", {"cat": 1, "dog": 1})
    write(tmp_path / "test", {"cat": 1})
    Image.fromarray(noise).save(tmp_path / "test" / "cat" / "000.png")
    small = Image.fromarray(noise).resize((16, 16), Image.Resampling.BILINEAR)
    dataset = image_folder.load(tmp_path, 16)
    assert np.array_equal(dataset.test_images[0].permute(1, 2, 0), np.asarray(small))
    grey = image_folder.load(tmp_path, 16, channels=1)
    assert grey.test_images.shape == (1, 1, 16, 16)
    expected = Image.fromarray(noise).convert("L").resize((16, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(grey.test_images[0, 0], np.asarray(expected))


@pytest.mark.parametrize("inner", ["", "train"])
def test_split_of_a_single_folder(tmp_path, inner):
    write(tmp_path / inner, {"cat": 10, "dog": 20})
    dataset = data.load("folder", data_dir=tmp_path, test_fraction=0.3)
    assert dataset.test_labels.tolist() == [0] * 3 + [1] * 6
    assert len(dataset.train_labels) == 21
    again = data.load("folder", data_dir=tmp_path, test_fraction=0.3)
    assert torch.equal(dataset.test_images, again.test_images)
    assert dataset.image_size == (32, 32)


def test_other_files_are_ignored_and_counted(tmp_path, caplog):
    write(tmp_path / "train", {"cat": 2, "dog": 2})
    write(tmp_path / "test", {"cat": 1})
    for name in ("notes.txt", "thumbs.db", ".hidden", "a.csv", "b.csv"):
        (tmp_path / "train" / "cat" / name).write_text("x")
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "labels.csv").write_text("x")
    dataset = data.load("folder", data_dir=tmp_path)
    assert "train: 3 files that are not images are ignored: 2 .csv, 1 .txt" in caplog.text
    assert dataset.classes == ("cat", "dog")
    assert len(dataset.train_labels) == 4


def break_nothing_there(root):
    shutil.rmtree(root)


def break_no_classes(root):
    shutil.rmtree(root / "train")
    (root / "train").mkdir()


def break_one_class(root):
    shutil.rmtree(root / "train" / "dog")


def break_empty_class(root):
    (root / "train" / "yak").mkdir()


def break_unknown_class(root):
    write(root / "test", {"emu": 1})


def break_text_as_image(root):
    (root / "train" / "dog" / "bad.png").write_text("not an image")


def break_truncated(root):
    path = root / "test" / "cat" / "000.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:2000])


def break_float(root):
    Image.fromarray(np.zeros((9, 9), np.float32)).save(root / "train" / "cat" / "deep.tif")


def break_no_train(root):
    shutil.rmtree(root / "train")


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (break_nothing_there, FileNotFoundError, "is not a folder"),
        (break_no_classes, ValueError, "no class folders"),
        (break_one_class, ValueError, "at least two class folders, got only 'cat'"),
        (break_empty_class, ValueError, r"yak: no images"),
        (break_unknown_class, ValueError, "'emu' is not among the training classes"),
        (break_text_as_image, ValueError, r"bad\.png: cannot be read"),
        (break_truncated, ValueError, r"000\.png: cannot be read"),
        (break_float, ValueError, r"deep\.tif: .*8 or 16 bits"),
        (break_no_train, ValueError, "train is not"),
    ],
)
def test_bad_folders_are_refused(tmp_path, damage, error, message):
    root = tmp_path / "set"
    write(root / "train", {"cat": 2, "dog": 2})
    write(root / "test", {"cat": 1})
    damage(root)
    with pytest.raises(error, match=message):
        data.load("folder", data_dir=root)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size"),
        ({"channels": 4}, "channels"),
        ({"test_fraction": 0.0}, "test_fraction"),
        ({"test_fraction": 1.0}, "test_fraction"),
        ({"test_fraction": 0.99}, "test_fraction: 0.99 of 4 images: .* nothing to train on"),
    ],
)
def test_wrong_options(tmp_path, options, message):
    write(tmp_path, {"cat": 2, "dog": 2})
    with pytest.raises(ValueError, match=message):
        data.load("folder", data_dir=tmp_path, **options)
